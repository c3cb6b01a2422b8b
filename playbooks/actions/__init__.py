"""The actions of playbooks, a file each."""
