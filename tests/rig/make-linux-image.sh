#!/usr/bin/env bash
# Makes a small real Linux disk from Debian packages: make-linux-image.sh DIRECTORY
#
# DIRECTORY/linux.raw is about 110 MiB: GPT, GRUB for BIOS and UEFI, Debian's cloud kernel, a busybox initramfs with
# linux-init.sh as its first process, and an ext4 root (label CLONEROOT) with 12 MiB of payload and its checksums. Beside it lie
# linux.vmlinuz and linux.initrd, and the kernel package for the next time. No mount, no loop device.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin" LC_ALL=C
here=$(dirname "$(readlink -f "$0")")
out=$(readlink -f "${1:?DIRECTORY}")
work=$(mktemp -d "$out/make.XXXXXX")
trap 'rm -rf "$work"' EXIT
label=CLONEROOT
esp_mib=8
root_mib=88
# On a busy host an interpreted machine's clock may stand still for so long that the kernel takes it for broken, and panics.
arguments="console=ttyS0,115200 quiet panic=5 no_timer_check clonegate.root=LABEL=$label"

kernel_package() { # unpacks the kernel into $work/kernel
    local package
    package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
    if [[ -z $package ]]; then
        apt-get update -qq
        package=$(apt-cache depends linux-image-cloud-amd64 | awk '$1 == "Depends:" { print $2; exit }')
    fi
    if ! compgen -G "$out/${package}_*.deb" >/dev/null; then
        # apt drops to its own user for downloads, which cannot write everywhere: the message about it is harmless.
        (cd "$out" && { apt-get download -qq "$package" || { apt-get update -qq && apt-get download -qq "$package"; }; })
    fi
    mkdir "$work/kernel"
    dpkg-deb -x "$(compgen -G "$out/${package}_*.deb" | tail -n 1)" "$work/kernel"
}

initramfs() { # makes $work/initrd
    local tree=$work/initramfs kernel=$work/kernel version module library
    version=$(basename "$kernel"/lib/modules/*)
    depmod -b "$kernel" "$version"
    mkdir -p "$tree"/{bin,sbin,etc,proc,sys,dev,run,"lib/modules/$version"}
    install -m755 "$(command -v busybox)" "$tree/bin/busybox"
    for module in virtio_pci virtio_blk virtio_scsi virtio_net sd_mod ahci ata_piix nbd nfit nd_pmem nd_btt; do
        modprobe -d "$kernel" -S "$version" --show-depends "$module" 2>/dev/null || true
    done | awk '$1 == "insmod" { print $2 }' | sort -u | while read -r module; do
        install -D -m644 "$module" "$tree${module#"$kernel"}"
    done
    cp "$kernel/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$tree/lib/modules/$version/"
    depmod -b "$tree" "$version"
    install -m755 "$(command -v nbd-client)" "$tree/sbin/nbd-client"
    ldd "$tree/sbin/nbd-client" | awk '$2 == "=>" { print $3 } $1 ~ /^\// { print $1 }' | while read -r library; do
        install -D -m755 "$library" "$tree$library"
    done
    install -m755 "$here/linux-init.sh" "$tree/init"
    install -m755 "$here/linux-udhcpc.sh" "$tree/etc/udhcpc.sh"
    (cd "$tree" && find . -print0 | sort -z | cpio --null --quiet -o -H newc -R 0:0 --reproducible) | zstd -q -10 >"$work/initrd"
}

payload() { # DIRECTORY: text that compresses, bytes that do not, and a sparse file
    mkdir -p "$1"
    openssl enc -aes-128-ctr -K 0f0e0d0c0b0a09080706050403020100 -iv 00 -in /dev/zero 2>/dev/null | head -c 8388608 >"$1/random" || true
    seq 1 600000 | head -c 4194304 >"$1/text" || true
    truncate -s 16M "$1/sparse"
    (cd "$1" && sha256sum random text sparse >sums)
}

grub_modules="part_gpt ext2 normal linux serial terminal terminfo echo search search_label configfile ls cat test halt"

efi_partition() { # makes $work/esp.img
    # shellcheck disable=SC2086 # the list of modules is meant to be split
    grub-mkimage -O x86_64-efi -o "$work/bootx64.efi" -p /boot/grub -c "$work/find-root.cfg" fat $grub_modules
    truncate -s "${esp_mib}M" "$work/esp.img"
    mkfs.vfat -F 16 -s 2 -n ESP -i 00C10E00 "$work/esp.img" >/dev/null
    mmd -i "$work/esp.img" ::/EFI ::/EFI/BOOT
    mcopy -i "$work/esp.img" "$work/bootx64.efi" ::/EFI/BOOT/BOOTX64.EFI
}

root_partition() { # makes $work/root.img
    local tree=$work/root
    mkdir -p "$tree"/{boot/grub,state,etc}
    payload "$tree/payload"
    cp "$work/vmlinuz" "$work/initrd" "$tree/boot/"
    cat >"$tree/boot/grub/grub.cfg" <<EOF
if [ "\$grub_platform" = pc ]; then
  serial --unit=0 --speed=115200
  terminal_input serial
  terminal_output serial
fi
set timeout=0
menuentry linux {
  echo GRUB-UP platform=\$grub_platform
  linux /boot/vmlinuz $arguments
  initrd /boot/initrd
  echo GRUB-LOADED
}
EOF
    truncate -s "${root_mib}M" "$work/root.img"
    mke2fs -q -F -t ext4 -L "$label" -U c10ec10e-0000-4000-8000-000000000001 -m 1 -d "$tree" "$work/root.img"
}

disk() { # makes $work/disk.raw: 1 MiB free, 1 MiB for GRUB's core, the EFI partition, the root
    local disk=$work/disk.raw esp_at=4096 root_at=$((4096 + esp_mib * 2048))
    truncate -s "$((2 + esp_mib + root_mib + 1))M" "$disk"
    sfdisk -q --no-reread --no-tell-kernel "$disk" <<EOF
label: gpt
label-id: C10EC10E-0000-4000-8000-0000000000AA
unit: sectors
start=2048, size=2048, type=21686148-6449-6E6F-744E-656564454649, name=grub
start=$esp_at, size=$((esp_mib * 2048)), type=C12A7328-F81F-11D2-BA4B-00A0C93EC93B, name=esp
start=$root_at, size=$((root_mib * 2048)), type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root
EOF
    dd if="$work/esp.img" of="$disk" bs=512 seek=$esp_at conv=notrunc,sparse status=none
    dd if="$work/root.img" of="$disk" bs=512 seek=$root_at conv=notrunc,sparse status=none
    # GRUB for BIOS without grub-install, which wants a real disk: boot.img goes into the MBR's code area and is told
    # where its core is (sector 2048); the core's first sector is told where and how long the rest is.
    # shellcheck disable=SC2086 # the list of modules is meant to be split
    grub-mkimage -O i386-pc -o "$work/core.img" -p "(hd0,gpt3)/boot/grub" -c "$work/find-root.cfg" biosdisk $grub_modules
    python3 - "$disk" /usr/lib/grub/i386-pc/boot.img "$work/core.img" <<'EOF'
import struct, sys
disk, boot, core = sys.argv[1:]
mbr = bytearray(open(boot, "rb").read()[:440])
core = bytearray(open(core, "rb").read())
struct.pack_into("<Q", mbr, 0x5C, 2048)
struct.pack_into("<QH", core, 0x1F4, 2049, (len(core) + 511) // 512 - 1)
with open(disk, "r+b") as out:
    out.write(mbr)
    out.seek(2048 * 512)
    out.write(core)
EOF
}

printf 'search --no-floppy --label %s --set=root\nset prefix=($root)/boot/grub\n' "$label" >"$work/find-root.cfg"
kernel_package
cp "$work"/kernel/boot/vmlinuz-* "$work/vmlinuz"
initramfs
efi_partition
root_partition
disk
for file in vmlinuz initrd; do mv "$work/$file" "$out/linux.$file"; done
mv "$work/disk.raw" "$out/linux.raw"
chmod 644 "$out"/linux.*
echo "linux.raw: $(stat -c %s "$out/linux.raw") bytes, $(du -k "$out/linux.raw" | cut -f1) KiB allocated"
