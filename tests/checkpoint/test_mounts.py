"""Which paths lie on a network, by the table of mounts."""

from __future__ import annotations

from pathlib import Path

import pytest

from mergekit_cl.checkpoint.mounts import is_on_network

TABLE = r"""proc /proc proc rw 0 0
/dev/sda / ext4 rw 0 0
server:/models /mnt/models nfs4 rw,vers=4.2 0 0
/dev/sdb /mnt/models/fast xfs rw 0 0
//nas/share /mnt/my\040share cifs rw 0 0
user@host:/ /mnt/ssh fuse.sshfs rw 0 0
/dev/sdc /mnt/usb fuseblk rw 0 0
host /mnt/host 9p rw,trans=virtio 0 0
/dev/sdd /mnt/late ext4 rw 0 0
late:/x /mnt/late nfs rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
garbage
"""
PLACES = {
    "/home/me/model.safetensors": False,
    "/mnt/models/a/model.safetensors": True,
    "/mnt/models": True,
    "/mnt/models-old/a": False,
    "/mnt/models/fast/a": False,
    "/mnt/my share/a": True,
    "/mnt/ssh/a": True,
    "/mnt/usb/a": False,
    "/mnt/host/a": True,
    "/mnt/late/a": True,
    "/dev/shm/a": False,
}


@pytest.mark.parametrize("place", PLACES)
def test_the_innermost_mount_decides(place: str) -> None:
    assert is_on_network(Path(place), TABLE) is PLACES[place]


def test_a_link_is_where_it_leads(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "far")
    table = f"/dev/sda / ext4 rw 0 0\nserver:/ {tmp_path}/far nfs rw 0 0\n"
    assert is_on_network(tmp_path / "link/x", table)


def test_no_table_is_no_network() -> None:
    assert not is_on_network(Path("/mnt/models/a"), "")


def test_this_machine_has_an_answer(tmp_path: Path) -> None:
    assert is_on_network(tmp_path) in (True, False)
