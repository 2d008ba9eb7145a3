#!/usr/bin/python3
"""Drives an NBD server by libnbd: every option in every order, every command, every error. Usage: cases.py URI_OF_A_WRITABLE
URI_OF_A_READ_ONLY, both 8 MiB whose every 8 bytes are their own offset. Prints a line a case; ends with 1 if any failed."""
import errno
import struct
import sys
import traceback

import nbd

DISK, SEAL = sys.argv[1:3]
BASE, _, NAME = DISK.rpartition("/")
SEALED = SEAL.rpartition("/")[2]
SIZE = 8 << 20
CASES = []


def case(function):
    CASES.append(function)
    return function


def expect(what, *numbers):
    """Runs `what`, which is to fail with one of `numbers`."""
    try:
        what()
    except nbd.Error as error:
        assert not numbers or error.errnum in numbers, f"{error.errnum} ({error.string}), not {numbers}"
        return
    raise AssertionError("it succeeded")


def haggling(name=NAME, tls=0, structured=True):
    """A handle in the middle of the options."""
    handle = nbd.NBD()
    handle.set_opt_mode(True)
    handle.set_request_structured_replies(structured)
    handle.connect_uri(BASE + "/" + name)
    return handle


def open_disk(uri=DISK, contexts=(), structured=True, lax=True):
    handle = nbd.NBD()
    handle.set_request_structured_replies(structured)
    for context in contexts:
        handle.add_meta_context(context)
    if lax:
        handle.set_strict_mode(0)  # say what the client's own checks would keep back
    handle.connect_uri(uri)
    return handle


def stamp(offset, length):
    return b"".join(struct.pack(">Q", at) for at in range(offset, offset + length, 8))


# Options.


@case
def greeting_is_fixed_newstyle():
    handle = haggling()
    assert handle.get_protocol() == "newstyle-fixed"
    handle.opt_abort()


@case
def abort_is_answered():
    haggling().opt_abort()


@case
def go_begins():
    handle = haggling()
    handle.opt_go()
    assert handle.get_size() == SIZE


@case
def info_tells_and_does_not_begin():
    handle = haggling()
    handle.opt_info()
    assert handle.get_size() == SIZE
    handle.opt_abort()


@case
def info_then_go():
    handle = haggling()
    handle.opt_info()
    handle.opt_go()
    assert handle.pread(8, 8) == stamp(8, 8)


@case
def info_many_times():
    handle = haggling()
    for _ in range(50):
        handle.opt_info()
    handle.opt_go()


@case
def info_of_an_unknown_export_fails_and_go_of_a_known_one_follows():
    handle = haggling("no-such-clone")
    expect(handle.opt_info)
    handle.set_export_name(NAME)
    handle.opt_go()


@case
def go_with_an_unknown_export_fails_and_can_be_tried_again():
    handle = haggling("no-such-clone")
    expect(handle.opt_go)
    expect(handle.opt_go)
    handle.set_export_name(NAME)
    handle.opt_go()
    assert handle.pread(8, 0) == stamp(0, 8)


@case
def info_of_one_export_and_go_with_another():
    handle = haggling(SEALED)
    handle.opt_info()
    assert handle.is_read_only()
    handle.set_export_name(NAME)
    handle.opt_go()
    assert not handle.is_read_only()


@case
def export_name_of_4096_bytes_is_refused_politely():
    handle = haggling("a" * 4096)
    expect(handle.opt_go)
    handle.opt_abort()


@case
def export_names_that_are_no_names_are_refused_politely():
    for name in ["Bad", "a b", "../x", "disk/", "base/b_1", "@", "ü", "a/b/c", "-"]:
        handle = haggling()
        handle.set_export_name(name)
        expect(handle.opt_go)
        handle.opt_abort()


@case
def the_empty_name_is_none_of_several():
    handle = haggling()
    handle.set_export_name("")
    expect(handle.opt_go)
    handle.opt_abort()


@case
def list_names_all_with_descriptions():
    handle = haggling()
    found = {}
    handle.opt_list(lambda name, description: found.__setitem__(name, description))
    assert NAME in found and SEALED in found, found
    assert all(found.values()), found
    handle.opt_abort()


@case
def list_twice_then_go():
    handle = haggling()
    for _ in range(2):
        names = []
        handle.opt_list(lambda name, _: names.append(name))
        assert len(names) == len(set(names)) >= 2
    handle.opt_go()


@case
def full_information_has_name_and_description():
    handle = haggling()
    handle.set_full_info(True)
    handle.opt_go()
    assert handle.get_canonical_export_name() == NAME
    assert handle.get_export_description()


@case
def block_sizes_are_told():
    handle = haggling()
    handle.opt_go()
    sizes = [handle.get_block_size(which) for which in (nbd.SIZE_MINIMUM, nbd.SIZE_PREFERRED, nbd.SIZE_MAXIMUM)]
    assert sizes == [1, 4096, 32 << 20], sizes


@case
def structured_replies_are_agreed_on():
    handle = haggling()
    assert handle.get_structured_replies_negotiated()
    handle.opt_go()


@case
def structured_replies_can_be_left_out():
    handle = haggling(structured=False)
    assert not handle.get_structured_replies_negotiated()
    handle.opt_go()
    assert not handle.can_df()
    assert handle.pread(8, 8) == stamp(8, 8)


@case
def starttls_without_certificates_is_refused_and_the_session_goes_on():
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_ALLOW)
    handle.connect_uri(DISK)
    assert not handle.get_tls_negotiated()
    assert handle.pread(8, 8) == stamp(8, 8)


@case
def a_client_that_wants_tls_gets_an_error_and_no_plain_session():
    handle = nbd.NBD()
    handle.set_tls(nbd.TLS_REQUIRE)
    expect(lambda: handle.connect_uri(DISK))


def contexts_listed(*queries):
    handle = haggling()
    for query in queries:
        handle.add_meta_context(query)
    found = []
    handle.opt_list_meta_context(found.append)
    handle.opt_abort()
    return found


@case
def all_contexts_are_listed_without_a_query():
    assert contexts_listed() == ["base:allocation", "clonegate:source"]


@case
def contexts_are_listed_by_name_and_by_namespace():
    assert contexts_listed("base:") == ["base:allocation"]
    assert contexts_listed("base:allocation") == ["base:allocation"]
    assert contexts_listed("clonegate:") == ["clonegate:source"]
    assert contexts_listed("clonegate:", "base:") == ["base:allocation", "clonegate:source"]


@case
def foreign_contexts_are_not_listed():
    assert contexts_listed("qemu:dirty-bitmap:x", "x-none:") == []


@case
def listing_contexts_of_an_unknown_export_fails():
    handle = haggling("no-such-clone")
    expect(lambda: handle.opt_list_meta_context(lambda _: None))
    handle.opt_abort()


@case
def chosen_contexts_are_usable():
    handle = open_disk(contexts=["base:allocation"])
    assert handle.can_meta_context("base:allocation")
    assert not handle.can_meta_context("clonegate:source")


@case
def foreign_contexts_are_not_chosen():
    handle = open_disk(contexts=["x-none:a", "clonegate:source"])
    assert not handle.can_meta_context("x-none:a")
    assert handle.can_meta_context("clonegate:source")


@case
def a_namespace_chooses_nothing():
    assert not open_disk(contexts=["base:"]).can_meta_context("base:allocation")


@case
def contexts_without_structured_replies_are_none():
    handle = open_disk(contexts=["base:allocation"], structured=False)
    assert not handle.can_meta_context("base:allocation")


@case
def what_a_writable_export_can_is_told():
    handle = open_disk()
    assert not handle.is_read_only() and not handle.is_rotational()
    for can in ["flush", "fua", "trim", "zero", "fast_zero", "cache", "multi_conn", "df"]:
        assert getattr(handle, "can_" + can)(), can


@case
def what_a_read_only_export_cannot_is_told():
    handle = open_disk(SEAL)
    assert handle.is_read_only() and handle.can_cache() and handle.can_multi_conn()
    for cannot in ["trim", "zero", "fast_zero"]:
        assert not getattr(handle, "can_" + cannot)(), cannot


# Reads.


@case
def reads_of_any_length_and_place():
    handle = open_disk()
    whole = stamp(0, 1 << 20)
    for offset, length in [(0, 1), (1, 1), (511, 2), (4095, 2), (0, 65536), (65535, 3), (12345, 100_000), (0, 1 << 20)]:
        assert handle.pread(length, offset) == whole[offset : offset + length], (offset, length)


@case
def the_last_byte_is_read():
    assert open_disk().pread(1, SIZE - 1) == stamp(SIZE - 8, 8)[-1:]


@case
def a_read_past_the_end_is_einval():
    handle = open_disk()
    expect(lambda: handle.pread(1, SIZE), errno.EINVAL)
    expect(lambda: handle.pread(2, SIZE - 1), errno.EINVAL)
    assert handle.pread(8, 8) == stamp(8, 8)


@case
def a_read_of_nothing_is_einval():
    handle = open_disk()
    expect(lambda: handle.pread(0, 0), errno.EINVAL)
    assert handle.pread(8, 8) == stamp(8, 8)


@case
def a_read_at_the_end_of_all_numbers_is_einval():
    expect(lambda: open_disk().pread(512, (1 << 63) - 512), errno.EINVAL)


@case
def a_read_beyond_the_largest_is_eoverflow():
    handle = open_disk()
    expect(lambda: handle.pread((32 << 20) + 1, 0), errno.EOVERFLOW)
    assert handle.pread(8, 8) == stamp(8, 8)


@case
def a_read_beyond_the_largest_is_einval_with_simple_replies():
    expect(lambda: open_disk(structured=False).pread((32 << 20) + 1, 0), errno.EINVAL)


@case
def an_unfragmented_read_is_one_chunk():
    handle = open_disk()
    chunks = []
    handle.pread_structured(100_000, 5, lambda data, offset, status, error: chunks.append((offset, len(data))), nbd.CMD_FLAG_DF)
    assert chunks == [(5, 100_000)], chunks


@case
def df_without_structured_replies_is_einval():
    handle = open_disk(structured=False)
    expect(lambda: handle.pread_structured(512, 0, lambda *_: 0, nbd.CMD_FLAG_DF), errno.EINVAL)
    assert handle.pread(8, 8) == stamp(8, 8)


@case
def a_read_with_an_unknown_flag_is_einval():
    handle = open_disk()
    for bit in range(5, 16):
        expect(lambda: handle.pread(512, 0, 1 << bit), errno.EINVAL)
    assert handle.pread(8, 8) == stamp(8, 8)


@case
def fua_on_a_read_is_let_pass():
    assert open_disk().pread(8, 8, nbd.CMD_FLAG_FUA) == stamp(8, 8)


@case
def zeroes_are_read_as_a_hole():
    handle = open_disk()
    handle.zero(65536, 1 << 20)
    kinds = []
    handle.pread_structured(65536, 1 << 20, lambda data, offset, status, error: kinds.append(status))
    assert kinds == [nbd.READ_HOLE], kinds


# Writes.


@case
def a_write_is_read_back():
    handle = open_disk()
    for offset, length in [(0, 1), (4095, 2), (4096, 4096), (100, 16384), (100, 16385), (7, 1 << 20)]:
        data = bytes((offset + at * 31) & 255 for at in range(length))
        handle.pwrite(data, offset)
        assert handle.pread(length, offset) == data, (offset, length)


@case
def a_write_past_the_end_is_enospc():
    handle = open_disk()
    expect(lambda: handle.pwrite(b"x", SIZE), errno.ENOSPC)
    expect(lambda: handle.pwrite(b"x" * 100_000, SIZE - 99_999), errno.ENOSPC)
    assert len(handle.pread(8, 8)) == 8


@case
def a_write_of_nothing_is_einval():
    handle = open_disk()
    expect(lambda: handle.pwrite(b"", 0), errno.EINVAL)
    assert len(handle.pread(8, 8)) == 8


@case
def a_write_beyond_the_largest_is_einval_and_its_payload_is_skipped():
    handle = open_disk()
    expect(lambda: handle.pwrite(bytes((32 << 20) + 1), 0), errno.EINVAL)
    assert len(handle.pread(8, 8)) == 8


@case
def a_write_with_flags_of_others_is_einval():
    handle = open_disk()
    for flag in [nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_DF, nbd.CMD_FLAG_REQ_ONE, nbd.CMD_FLAG_FAST_ZERO, 1 << 5, 1 << 15]:
        expect(lambda: handle.pwrite(b"x" * 512, 0, flag), errno.EINVAL)
    assert len(handle.pread(8, 8)) == 8


@case
def a_write_with_fua():
    handle = open_disk()
    handle.pwrite(b"f" * 512, 512, nbd.CMD_FLAG_FUA)
    assert handle.pread(512, 512) == b"f" * 512


@case
def a_write_to_a_read_only_export_is_eperm():
    handle = open_disk(SEAL)
    expect(lambda: handle.pwrite(b"x" * 512, 0), errno.EPERM)
    expect(lambda: handle.pwrite(b"x" * 100_000, 0), errno.EPERM)
    assert handle.pread(8, 8) == stamp(8, 8)


@case
def trim_and_zero_on_a_read_only_export_are_eperm():
    handle = open_disk(SEAL)
    expect(lambda: handle.trim(512, 0), errno.EPERM)
    expect(lambda: handle.zero(512, 0), errno.EPERM)
    assert handle.pread(8, 8) == stamp(8, 8)


@case
def flush_on_a_read_only_export():
    open_disk(SEAL).flush()


@case
def flush():
    open_disk().flush()


@case
def flush_with_a_flag_of_others_is_einval():
    handle = open_disk()
    for bit in range(1, 16):
        expect(lambda: handle.flush(1 << bit), errno.EINVAL)
    handle.flush()


@case
def trimmed_bytes_are_zero():
    handle = open_disk()
    handle.pwrite(b"x" * 8192, 2 << 20)
    handle.trim(8192, 2 << 20)
    assert handle.pread(8192, 2 << 20) == bytes(8192)


@case
def trim_with_fua():
    open_disk().trim(4096, 2 << 20, nbd.CMD_FLAG_FUA)


@case
def trim_past_the_end_is_einval():
    handle = open_disk()
    expect(lambda: handle.trim(512, SIZE), errno.EINVAL)
    expect(lambda: handle.trim((1 << 32) - 1, 0), errno.EINVAL)
    assert len(handle.pread(8, 8)) == 8


@case
def trim_of_nothing_is_einval():
    expect(lambda: open_disk().trim(0, 0), errno.EINVAL)


@case
def trim_with_flags_of_others_is_einval():
    handle = open_disk()
    for flag in [nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_DF, nbd.CMD_FLAG_REQ_ONE, nbd.CMD_FLAG_FAST_ZERO]:
        expect(lambda: handle.trim(512, 0, flag), errno.EINVAL)


@case
def zeroed_bytes_are_zero():
    handle = open_disk()
    for flags in [0, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO, nbd.CMD_FLAG_FUA, 0b10011]:
        handle.pwrite(b"x" * 10_000, (3 << 20) + 1)
        handle.zero(10_000, (3 << 20) + 1, flags)
        assert handle.pread(10_000, (3 << 20) + 1) == bytes(10_000)


@case
def zeroing_leaves_the_neighbours():
    handle = open_disk()
    handle.pwrite(b"n" * 12288, 4 << 20)
    handle.zero(4098, (4 << 20) + 4095)
    assert handle.pread(12288, 4 << 20) == b"n" * 4095 + bytes(4098) + b"n" * (12288 - 4095 - 4098)


@case
def zeroing_past_the_end_is_enospc():
    handle = open_disk()
    expect(lambda: handle.zero(512, SIZE), errno.ENOSPC)
    expect(lambda: handle.zero(SIZE + 1, 0), errno.ENOSPC)


@case
def zeroing_nothing_is_einval():
    expect(lambda: open_disk().zero(0, 0), errno.EINVAL)


@case
def zeroing_with_flags_of_others_is_einval():
    handle = open_disk()
    for flag in [nbd.CMD_FLAG_DF, nbd.CMD_FLAG_REQ_ONE, 1 << 5, 1 << 9]:
        expect(lambda: handle.zero(512, 0, flag), errno.EINVAL)


@case
def cache():
    handle = open_disk()
    handle.cache(65536, 0)
    expect(lambda: handle.cache(512, SIZE), errno.EINVAL)
    expect(lambda: handle.cache(0, 0), errno.EINVAL)
    expect(lambda: handle.cache(512, 0, nbd.CMD_FLAG_DF), errno.EINVAL)


# Status.


def status(handle, length, offset, flags=0):
    found = {}

    def extent(context, at, entries, error):
        assert at == offset
        found[context] = list(zip(entries[::2], entries[1::2]))

    handle.block_status(length, offset, extent, flags)
    return found


@case
def status_of_what_was_zeroed_and_what_was_not():
    handle = open_disk(contexts=["base:allocation", "clonegate:source"])
    handle.zero(1 << 20, 5 << 20)
    handle.pwrite(b"d" * 4096, 5 << 20)
    found = status(handle, 1 << 20, 5 << 20)
    assert found["base:allocation"] == [(4096, 0), ((1 << 20) - 4096, 3)], found
    assert found["clonegate:source"] == [(4096, 1), ((1 << 20) - 4096, 0)], found


@case
def status_of_one_extent_only():
    handle = open_disk(contexts=["base:allocation", "clonegate:source"])
    found = status(handle, SIZE, 0, nbd.CMD_FLAG_REQ_ONE)
    assert all(len(runs) == 1 for runs in found.values()) and len(found) == 2, found


@case
def status_without_contexts_is_einval():
    handle = open_disk()
    expect(lambda: status(handle, 512, 0))
    assert len(handle.pread(8, 8)) == 8


@case
def status_past_the_end_is_einval():
    handle = open_disk(contexts=["base:allocation"])
    expect(lambda: status(handle, 512, SIZE), errno.EINVAL)
    expect(lambda: status(handle, SIZE + 1, 0), errno.EINVAL)
    expect(lambda: status(handle, 0, 0), errno.EINVAL)


@case
def status_with_flags_of_others_is_einval():
    handle = open_disk(contexts=["base:allocation"])
    for flag in [nbd.CMD_FLAG_DF, nbd.CMD_FLAG_NO_HOLE, nbd.CMD_FLAG_FAST_ZERO]:
        expect(lambda: status(handle, 512, 0, flag), errno.EINVAL)


@case
def status_may_be_asked_of_a_part_of_a_block():
    handle = open_disk(SEAL, contexts=["base:allocation"])
    assert status(handle, 3, 4097)["base:allocation"] == [(3, 0)]


# Connections.


@case
def many_requests_in_flight():
    handle = open_disk(SEAL)
    buffers = {}
    for number in range(500):
        buffer = nbd.Buffer(4096)
        buffers[handle.aio_pread(buffer, number * 8192)] = (number * 8192, buffer)
    while buffers:
        handle.poll(-1)
        for cookie in list(buffers):
            if handle.aio_command_completed(cookie):
                offset, buffer = buffers.pop(cookie)
                assert buffer.to_bytearray() == stamp(offset, 4096)


@case
def a_write_on_one_connection_is_read_on_another():
    one, other = open_disk(), open_disk()
    for number in range(20):
        data = bytes([number]) * 4096
        one.pwrite(data, 6 << 20)
        assert other.pread(4096, 6 << 20) == data
    other.flush()


@case
def a_good_bye_is_enough():
    handle = open_disk()
    handle.shutdown()
    open_disk().pread(8, 8)


@case
def a_good_bye_with_requests_in_flight_finishes_them():
    handle = open_disk()
    for number in range(64):
        handle.aio_pwrite(nbd.Buffer.from_bytearray(bytearray(b"g" * 4096)), (7 << 20) + number * 4096)
    handle.shutdown()
    assert open_disk().pread(64 * 4096, 7 << 20) == b"g" * 64 * 4096


@case
def a_client_that_vanishes_harms_nobody():
    for _ in range(20):
        handle = open_disk()
        handle.aio_pread(nbd.Buffer(1 << 20), 0)
        del handle
    assert open_disk(SEAL).pread(8, 8) == stamp(8, 8)


@case
def a_hundred_connections():
    handles = [open_disk(SEAL) for _ in range(100)]
    for number, handle in enumerate(handles):
        assert handle.pread(8, number * 8) == stamp(number * 8, 8)


failed = 0
for number, function in enumerate(CASES, 1):
    try:
        function()
        print(f"ok {number} {function.__name__}")
    except Exception:  # noqa: BLE001 - every case is tried
        failed += 1
        print(f"not ok {number} {function.__name__}\n{traceback.format_exc()}")
print(f"1..{len(CASES)}, {failed} failed")
sys.exit(failed > 0)
