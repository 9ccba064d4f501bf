#!/bin/sh
# Remove from a host what is this one host's own, before an image is made of it. It can be reached no more afterwards.
set -eu

rm -f /usr/sbin/policy-rc.d
apt-get clean
rm -f /var/cache/apt/*.bin /var/cache/debconf/*-old /var/lib/dpkg/*-old

rm -f /etc/ssh/ssh_host_* /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret
: >/etc/machine-id
# Debian's package ssl-cert makes a certificate and its key, which all hosts from this image would share.
rm -f /etc/ssl/private/ssl-cert-snakeoil.key /etc/ssl/certs/ssl-cert-snakeoil.pem
find /etc/ssl/certs -xtype l -delete

journalctl --relinquish-var
rm -rf /var/log/journal
find /var/log -type f -delete
find /tmp /var/tmp -mindepth 1 -delete
rm -rf /root/.ansible /root/.bash_history /root/.ssh
for home in /home/*; do
    rm -rf "$home/.ansible" "$home/.bash_history" "$home/.ssh/authorized_keys"
done
sync
