#!/bin/sh
# Runs in the guest of make-cloud-image.sh when cloud-init is done: says on the serial line what the machine has become, then powers it off.
# The options after `cloud.users=` on the kernel command line are the users to tell about.
users=$(sed -n 's/.*cloud\.users=\([^ ]*\).*/\1/p' /proc/cmdline | tr , ' ')
datasource=$(sed -n 's/.*"datasource": "\([^"]*\)".*/\1/p' /run/cloud-init/result.json | tr ' ' _)
echo
echo "CLOUD-HOST $(hostname)"
echo "CLOUD-INSTANCE $(cat /var/lib/cloud/data/instance-id)"
echo "CLOUD-SOURCE $datasource"
echo "CLOUD-MACHINE-ID $(cat /etc/machine-id)"
for key in /etc/ssh/ssh_host_*_key.pub; do
    [ -e "$key" ] && echo "CLOUD-HOST-KEY $(cut -d' ' -f1,2 <"$key")"
done
for user in $users; do
    line=$(getent passwd "$user") && echo "CLOUD-USER $line"
    home=$(echo "$line" | cut -d: -f6)
    [ -e "$home/.ssh/authorized_keys" ] && sed "s/^/CLOUD-KEY $user /" "$home/.ssh/authorized_keys"
    getent shadow "$user" | cut -d: -f1,2 | sed 's/^/CLOUD-PASSWORD /'
done
ip -o -4 address show scope global | awk '{ print "CLOUD-ADDRESS", $2, $4 }'
[ -e /var/tmp/user-data-ran ] && echo "CLOUD-USER-DATA $(cat /var/tmp/user-data-ran)"
grep -h -e WARNING -e ERROR -e Traceback /var/log/cloud-init.log | sed 's/^/CLOUD-COMPLAINT /' | head -20
echo "CLOUD-DONE errors=$(sed -n 's/.*"errors": \[\(.*\)\].*/\1/p' /run/cloud-init/result.json)"
sync
systemctl poweroff --no-block
