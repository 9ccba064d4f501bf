"""The platform's own Python: what Ansible, systemd and the Makefile leave to be said."""
