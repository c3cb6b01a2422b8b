"""What the lab's gateway runs, as the files that its real services read: rsyslog, OpenSSH, PAM, nginx.

Everything here is text made from a folder; nothing is started and nothing outside that folder is written.
"""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Account:
    name: str
    password: str
    uid: int


ACCOUNTS = (
    Account("alice", "correct-horse-battery", 60001),
    Account("bob", "staple-of-the-lab", 60002),
    Account("operator", "only-from-management", 60003),
)
PASSWORDS = {account.name: account.password for account in ACCOUNTS}
KEYS = {"alice": "sk-lab-alice", "bob": "sk-lab-bob"}
"""API keys by the opaque id that nginx writes for them."""

MODEL_PORTS = {"chat": (80, 8000), "embeddings": (8081, 8001)}
"""Endpoint: the front that nginx listens on, the back on loopback."""

RSYSLOG = """\
module(load="imuxsock" SysSock.Name="/dev/log" SysSock.RateLimit.Interval="0")
global(workDirectory="{folder}")
$Umask 0000
module(load="builtin:omfile" Template="RSYSLOG_TraditionalFileFormat" fileGroup="adm" fileCreateMode="0640")
auth,authpriv.* action(type="omfile" file="/var/log/auth.log")
*.*;auth,authpriv.none action(type="omfile" file="/var/log/syslog")
"""

SSHD = """\
Port 22
HostKey {folder}/host_ed25519
PidFile none
UsePAM yes
PasswordAuthentication yes
KbdInteractiveAuthentication no
PermitRootLogin no
UseDNS no
PrintMotd no
PrintLastLog no
"""

# Debian's stack without the message of the day, mail and systemd, which the lab has none of, and without the
# two seconds that pam_unix waits after a failure, so that an attack takes seconds and not minutes.
PAM_SSHD = """\
auth [success=1 default=ignore] pam_unix.so nodelay
auth requisite pam_deny.so
auth required pam_permit.so
account required pam_nologin.so
account required pam_unix.so
session optional pam_loginuid.so
session required pam_unix.so
"""

NGINX = """\
user www-data;
worker_processes 2;
daemon off;
pid /run/nginx.pid;
error_log /var/log/nginx/error.log;
events {{ worker_connections 768; }}
http {{
  map $http_authorization $api_key_id {{ default "-"; {keys} }}
  map $upstream_http_x_model $model {{ "" "-"; default $upstream_http_x_model; }}
  map $upstream_http_x_tokens_in $tokens_in {{ "" "-"; default $upstream_http_x_tokens_in; }}
  map $upstream_http_x_tokens_out $tokens_out {{ "" "-"; default $upstream_http_x_tokens_out; }}
{formats}
  access_log /var/log/nginx/access.log gateway;
  access_log /var/log/nginx/combined.log combined;
  access_log /var/log/nginx/access.json gateway_json;
{servers}
}}
"""

NGINX_FORMATS = """\
  log_format gateway '$remote_addr - $remote_user [$time_local] "$request" $status $body_bytes_sent '
                     '"$http_referer" "$http_user_agent" rt=$request_time key=$api_key_id model=$model '
                     'in=$tokens_in out=$tokens_out rid=$request_id';
  log_format gateway_json escape=json '{"time_iso8601":"$time_iso8601","remote_addr":"$remote_addr",'
    '"http_x_forwarded_for":"$http_x_forwarded_for","request_method":"$request_method",'
    '"request_uri":"$request_uri","status":"$status","body_bytes_sent":"$body_bytes_sent",'
    '"http_user_agent":"$http_user_agent","request_time":"$request_time","api_key_id":"$api_key_id",'
    '"model":"$model","tokens_in":"$tokens_in","tokens_out":"$tokens_out","request_id":"$request_id"}';
"""

NGINX_SERVER = """\
  server {{
    listen {front};
    listen [::]:{front};
    location / {{
      proxy_pass http://127.0.0.1:{back};
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_read_timeout 120s;
    }}
  }}
"""

BALANCER = """\
user www-data;
worker_processes 1;
daemon off;
pid {folder}/balancer.pid;
error_log {folder}/log/balancer-error.log;
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path {folder}/balancer-body;
  proxy_temp_path {folder}/balancer-proxy;
  fastcgi_temp_path {folder}/balancer-fastcgi;
  uwsgi_temp_path {folder}/balancer-uwsgi;
  scgi_temp_path {folder}/balancer-scgi;
  server {{
    listen 80;
    location / {{
      proxy_pass http://{gateway}:80;
      proxy_http_version 1.1;
      proxy_buffering off;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
    }}
  }}
}}
"""

# A copy of /etc in its place, before MOUNTS: for what has to make files there, such as /etc/gatewatch/denied-accounts.
OWN_ETC = """\
set -e
mkdir {folder}/own-etc
cp -a /etc/. {folder}/own-etc
mkdir -p -m 755 {folder}/own-etc/gatewatch
mount --bind {folder}/own-etc /etc
"""

# The gateway's own mount namespace: private accounts, /dev/log, /run and /var/log. Nothing of the machine's is
# changed, and the folder's log/ is /var/log there, so that whoever built the lab can read it from outside.
MOUNTS = """\
set -e
mount --make-rprivate /
hostname gateway
mount --bind {folder}/etc/passwd /etc/passwd
mount --bind {folder}/etc/shadow /etc/shadow
mount --bind {folder}/etc/group /etc/group
mount --bind {folder}/etc/pam-sshd /etc/pam.d/sshd
mount --bind {folder}/etc/hosts /etc/hosts
mount --bind {folder}/etc/resolv.conf /etc/resolv.conf
mount --bind {folder}/log /var/log
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -p -m 755 /run/sshd /run/lock /run/netns
mkdir {folder}/dev
mount -t tmpfs -o mode=755 tmpfs {folder}/dev
for name in null zero full random urandom tty; do
  touch {folder}/dev/$name
  mount --bind /dev/$name {folder}/dev/$name
done
mkdir {folder}/dev/pts {folder}/dev/shm
mount --rbind /dev/pts {folder}/dev/pts
mount --bind /dev/shm {folder}/dev/shm
ln -s pts/ptmx {folder}/dev/ptmx
ln -s /proc/self/fd {folder}/dev/fd
ln -s fd/0 {folder}/dev/stdin
ln -s fd/1 {folder}/dev/stdout
ln -s fd/2 {folder}/dev/stderr
mount --move {folder}/dev /dev
echo ready
exec cat
"""


def write_accounts(folder: Path, *, uids: int = 0) -> None:
    """The machine's account files and the lab's accounts, as copies in `folder`/etc, with homes and a key.

    `uids` is added to the accounts' user ids: two labs whose processes could be ended by user id must differ.
    """
    etc = folder / "etc"
    etc.mkdir()
    for name in ("passwd", "shadow", "group"):
        shutil.copy(f"/etc/{name}", etc / name)
    (etc / "shadow").chmod(0o600)
    with open(etc / "passwd", "a") as passwd, open(etc / "shadow", "a") as shadow:
        for account in ACCOUNTS:
            home = folder / "home" / account.name
            home.mkdir(parents=True)
            said = subprocess.run(
                ["openssl", "passwd", "-6", "-stdin"],
                input=account.password,
                capture_output=True,
                text=True,
                check=True,
            )
            uid = account.uid + uids
            passwd.write(f"{account.name}:x:{uid}:{uid}:{account.name}:{home}:/bin/sh\n")
            shadow.write(f"{account.name}:{said.stdout.strip()}:20000:0:99999:7:::\n")
    with open(etc / "group", "a") as group:
        group.writelines(f"{account.name}:x:{account.uid + uids}:\n" for account in ACCOUNTS)
    (etc / "pam-sshd").write_text(PAM_SSHD)
    (etc / "hosts").write_text("127.0.0.1 localhost\n::1 localhost\n127.0.1.1 gateway\n")
    (etc / "resolv.conf").write_text("")
    for name in ("host_ed25519", "operator_ed25519"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "lab", "-f", str(folder / name)], check=True
        )
    for account in ACCOUNTS:
        home = folder / "home" / account.name
        shutil.chown(home, account.uid + uids, account.uid + uids)
    authorise(folder, "operator")


def authorise(folder: Path, *names: str) -> None:
    """The lab's key may log in as these."""
    for name in names:
        home = folder / "home" / name
        owner = home.stat().st_uid
        keys = home / ".ssh"
        keys.mkdir(exist_ok=True)
        shutil.copy(folder / "operator_ed25519.pub", keys / "authorized_keys")
        for path in (keys, keys / "authorized_keys"):
            shutil.chown(path, owner, owner)


def write_services(folder: Path, gateway: str) -> None:
    """Every service's configuration; `gateway` is the address that the balancer passes requests to."""
    (folder / "rsyslog.conf").write_text(RSYSLOG.format(folder=folder))
    (folder / "sshd_config").write_text(SSHD.format(folder=folder))
    keys = " ".join(f'"Bearer {key}" {name};' for name, key in KEYS.items())
    servers = "".join(NGINX_SERVER.format(front=front, back=back) for front, back in MODEL_PORTS.values())
    nginx = NGINX.format(keys=keys, formats=NGINX_FORMATS, servers=servers)
    (folder / "nginx.conf").write_text(nginx)
    (folder / "balancer.conf").write_text(BALANCER.format(folder=folder, gateway=gateway))
