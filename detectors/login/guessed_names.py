"""Account names that the whole internet guesses: strangers fail for them everywhere and always.

That says nothing of a site, so the detectors of distributed attacks take no failure for such a name as aimed
at it; those of single sources count them as any other. The names are what operating systems, packages and
appliances create, and what people call a shared account; all of them lead the lists that SSH honeypots publish
(Cowrie and DShield's daily reports at the SANS Internet Storm Center; Owens and Matthews, "A Study of
Passwords and Methods Used in Brute-Force SSH Attacks", 2008).
"""

from __future__ import annotations

import numpy as np

from ...daemon.collectors.parsers.scan import keyed_hash
from ...daemon.events import U64

GUESSED_NAMES = frozenset(
    """
    root admin administrator adm sysadmin superuser super operator supervisor manager master owner service
    user user1 user2 user01 users guest test test1 test2 test3 test123 tester testing testuser testuser1 demo
    temp tmp default public anonymous nobody info support help helpdesk sales marketing office contact
    ubuntu debian centos fedora redhat ec2-user ec2user azureuser opc rocky alma arch cloud-user cloud vagrant
    pi raspberry raspbian osmc libreelec volumio odroid nvidia jetson orangepi
    oracle postgres postgresql mysql mariadb mongo mongodb redis memcached elastic elasticsearch es kibana
    logstash cassandra influxdb grafana prometheus nagios zabbix icinga munin cacti netdata splunk
    git gitlab github gitlab-runner gitea svn jenkins hudson teamcity bamboo sonar sonarqube nexus docker
    kubernetes k8s kube rancher openshift ansible puppet chef salt terraform deploy deployer deployment
    hadoop hdfs hbase hive spark kafka zookeeper flink storm airflow yarn livy zeppelin jupyter
    llm vllm ollama triton tgi litellm ai ml gpu
    www www-data web webadmin webmaster webuser apache apache2 httpd nginx tomcat tomcat7 tomcat8 jboss
    wildfly weblogic websphere glassfish wordpress wp joomla drupal magento odoo odoo14 odoo15 moodle
    nextcloud owncloud node nodejs php django rails ruby python java
    ftp ftpuser ftpadmin ftptest sftp sftpuser upload download backup backups backupuser rsync nas smb samba
    share storage data
    mail postfix dovecot exim sendmail mailman spam cyrus vmail squid proxy vpn openvpn wireguard radius ldap
    asterisk freeswitch sip pbx voip teamspeak teamspeak3 ts ts3 ts3server mumble minecraft mc steam
    csgo csserver cs gmod rust ark game games gameserver sinusbot bot
    student students teacher school lab labs dev dev1 developer devops ops staging stage prod production qa
    ubnt cisco mikrotik netgear dlink zyxel huawei hikvision dahua camera dvr router switch firewall
    uucp bin daemon sync games man lp news list irc gnats sshd sys mssql dbadmin dba db database sa
    vnc rdp x2go xrdp plex emby kodi sonarr radarr transmission media
    client customer app app1 appuser application api server system sysop system1 monitor monitoring
    """.split()  # noqa: SIM905
)


def guessed_names(hash_key: bytes) -> U64:
    """Their keyed hashes as `AuthBatch.user` holds them, `uint64[n]`, ascending. `hash_key`: 16 bytes."""
    return np.sort(np.array([keyed_hash(name.encode(), hash_key) for name in GUESSED_NAMES], np.uint64))
