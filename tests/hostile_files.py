"""Small files that are made to harm who opens them, each with its name; nothing here is opened."""

import io
import os
import socket
import struct
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av

from videogn.data.forms import Coding, encode
from videogn.files import member_path

SIDE = 5760
"""Largest multiple of 64, to which decoders round, whose square a frame may have."""

UNNOTICED = {"mp4 of scale 0"}
"""Of the ticks of its edit list, taken for seconds, one frame is left: as if cut so on purpose."""


class Lures(NamedTuple):
    """What no video may make a reader open.

    Attributes:
        secret: a sound video in a watched folder.
        port: of a watched address on this machine, TCP and UDP.
    """

    secret: Path
    port: int

    @property
    def url(self) -> str:
        """An address of a video there."""
        return f"http://127.0.0.1:{self.port}/a.mp4"


@dataclass(frozen=True)
class Hostile:
    """A file, or what stands in a file's place.

    Attributes:
        name: what it is, for people.
        path: as a list would name it.
        sound: whether it may as well be read: odd, but no picture is missing.
    """

    name: str
    path: str
    sound: bool = False


def make_all(folder: Path, lures: Lures) -> list[Hostile]:
    """Every kind of hostile file, in folders of ``folder``."""
    makers: list[Callable[[Path, Lures], Iterator[Hostile]]] = [
        playlists,
        sharded_playlists,
        references,
        special_files,
        bombs,
        lies,
        odd_names,
        not_videos,
    ]
    found = []
    for maker in makers:
        inner = folder / maker.__name__
        inner.mkdir(parents=True)
        found += maker(inner, lures)
    return found


def _texts(lures: Lures, own: Path) -> dict[str, str]:
    """Playlists by kind and what they name: the secret file, an address, or themselves."""
    secret, port = lures.secret, lures.port
    targets = {"file": f"{secret}", "file url": f"file://{secret}", "http": lures.url}
    targets |= {"itself": own.name, "beside": os.path.relpath(secret, own.parent)}
    targets["tcp"] = f"tcp://127.0.0.1:{port}"
    texts = {}
    for goal, target in targets.items():
        texts[f"ffconcat {goal}"] = f"ffconcat version 1.0\nfile '{target}'\nduration 1\n"
        head = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n"
        texts[f"hls {goal}"] = f"{head}#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n"
        texts[f"hls master {goal}"] = f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{target}\n"
        texts[f"hls map {goal}"] = (
            f'{head}#EXT-X-MAP:URI="{target}"\n#EXT-X-KEY:METHOD=AES-128,URI="{target}"\n'
            f"#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n"
        )
        texts[f"dash {goal}"] = (
            '<?xml version="1.0"?>\n<!DOCTYPE MPD [<!ENTITY e SYSTEM "' + target + '">]>\n'
            '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
            'mediaPresentationDuration="PT1S" minBufferTime="PT1S" '
            'profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>'
            '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
            f"<BaseURL>{target}</BaseURL></Representation></AdaptationSet></Period></MPD>\n"
        )
        texts[f"asx {goal}"] = f"[Reference]\nRef1={target}\n"
    texts["sdp"] = sdp(port)
    return texts


def sdp(port: int) -> str:
    """A description of a stream that is waited for at a port."""
    return (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=a\nc=IN IP4 127.0.0.1\nt=0 0\n"
        f"m=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    )


SUFFIXES = (".mp4", ".mkv", ".avi", ".webm", ".ts", ".mpg", ".flv", ".wmv", ".mov", ".m4v")


def playlists(folder: Path, lures: Lures) -> Iterator[Hostile]:
    """Playlists under the names of videos."""
    for number, kind in enumerate(_texts(lures, folder)):
        path = folder / f"{number}{SUFFIXES[number % len(SUFFIXES)]}"
        path.write_text(_texts(lures, path)[kind])
        yield Hostile(kind, str(path))


def sharded_playlists(folder: Path, lures: Lures) -> Iterator[Hostile]:
    """The same in a tar shard, whose folder is named like options of FFmpeg's protocols."""
    inner = folder / ",,start,0,end,9,,:"
    inner.mkdir()
    tar_path = inner / "shard.tar"
    with tarfile.open(tar_path, "w") as tar:
        for number, kind in enumerate(_texts(lures, folder)):
            name = f"{number}.mp4"
            _add(tar, name, _texts(lures, inner / name)[kind].encode())
        video = encode(folder / "sound.mp4", Coding(num_frames=10)).read_bytes()
        _add(tar, "cut.mp4", video[: len(video) // 2])
    (folder / "sound.mp4").unlink()
    with tarfile.open(tar_path) as tar:
        members = tar.getmembers()
    for info, kind in zip(members, [*_texts(lures, folder), "truncated"], strict=True):
        path = member_path(str(tar_path), info.offset_data, info.size, info.name)
        yield Hostile(f"shard: {kind}", path)
    last = members[-1]
    for kind, start, size in [
        ("elsewhere", last.offset_data + 1, last.size),
        ("longer", last.offset_data, last.size + 10**6),
        ("far away", 10**17, last.size),
    ]:
        yield Hostile(f"shard: {kind}", member_path(str(tar_path), start, size, "a.mp4"))


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def references(folder: Path, lures: Lures) -> Iterator[Hostile]:
    """Movies whose pictures lie in another file: data references, and reference movies."""
    source = encode(folder / "source.mp4", Coding(num_frames=20)).read_bytes()
    (folder / "source.mp4").unlink()
    for kind, entry in {
        "alis": alias(lures.secret),
        "url file": box(b"url ", bytes(4) + f"file://{lures.secret}".encode() + b"\0"),
        "url http": box(b"url ", bytes(4) + lures.url.encode() + b"\0"),
        "urn": box(b"urn ", bytes(4) + b"a\0" + lures.url.encode() + b"\0"),
    }.items():
        path = folder / f"dref {kind}.mov"
        path.write_bytes(with_reference(source, entry))
        # FFmpeg reads the file's own bytes in their place, which are sound here.
        yield Hostile(f"dref {kind}", str(path), sound=True)
    head = box(b"ftyp", b"qt  \0\0\0\0qt  ")
    for kind, name in {"file": f"file://{lures.secret}", "http": lures.url}.items():
        target = name.encode() + b"\0"
        entry = box(b"rdrf", bytes(4) + b"url " + struct.pack(">I", len(target)) + target)
        path = folder / f"rmra {kind}.mov"
        path.write_bytes(head + box(b"moov", box(b"rmra", box(b"rmda", entry))))
        yield Hostile(f"rmra {kind}", str(path))


def box(kind: bytes, content: bytes) -> bytes:
    """A box of an mp4 file."""
    return struct.pack(">I", 8 + len(content)) + kind + content


def alias(target: Path) -> bytes:
    """An entry of a ``dref`` box that names a file as QuickTime's aliases do."""
    name = str(target).encode()
    record = bytearray(150)
    record[10] = 1  # length of the volume's name
    record[11:12] = b"v"
    record[50] = len(target.name)
    record[51 : 51 + len(target.name)] = target.name.encode()
    struct.pack_into(">2h", record, 130, -1, -1)  # no relative path
    path = name + bytes(len(name) % 2)
    tail = struct.pack(">2H", 2, len(name)) + path + struct.pack(">2h", -1, 0)
    return box(b"alis", bytes(4) + bytes(record[:150]) + tail)


def with_reference(movie: bytes, entry: bytes) -> bytes:
    """An mp4, whose index is at its end, with another entry in its ``dref`` box."""
    new = box(b"dref", struct.pack(">2I", 0, 1) + entry)
    start = movie.index(b"dref") - 4
    size = int.from_bytes(movie[start : start + 4], "big")
    data = bytearray(movie[:start] + new + movie[start + size :])
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"dinf"):
        place = data.index(parent) - 4
        length = int.from_bytes(data[place : place + 4], "big")
        struct.pack_into(">I", data, place, length + len(new) - size)
    return bytes(data)


def special_files(folder: Path, lures: Lures) -> Iterator[Hostile]:
    """What is no regular file."""
    os.mkfifo(folder / "pipe.mp4")
    (folder / "link to pipe.mp4").symlink_to(folder / "pipe.mp4")
    # A socket's path may have 107 bytes.
    with socket.socket(socket.AF_UNIX) as unix:
        here = Path.cwd()
        os.chdir(folder)
        try:
            unix.bind("socket.mp4")
        finally:
            os.chdir(here)
    (folder / "zero.mp4").symlink_to("/dev/zero")
    (folder / "memory.mp4").symlink_to("/proc/self/mem")
    (folder / "folder.mp4").mkdir()
    (folder / "dangling.mp4").symlink_to(folder / "nowhere")
    (folder / "loop.mp4").symlink_to(folder / "loop.mp4")
    for path in sorted(folder.iterdir()):
        yield Hostile(path.stem, str(path))
    long = folder / ("x" * 300 + ".mp4")
    yield Hostile("name too long", str(long))
    yield Hostile("missing", str(folder / "missing.mp4"))


def bombs(folder: Path, lures: Lures) -> Iterator[Hostile]:
    """Small files that decode to much, or claim much."""
    mp4 = encode(folder / "base.mp4", Coding(num_frames=10, options={"profile": "baseline"}))
    base = mp4.read_bytes()
    mp4.unlink()
    written = {
        "index of 85 M samples.mp4": claiming_samples(base, 85_000_000),
        "index of 4 G samples.mp4": claiming_samples(base, 2**32 - 1),
        "h264 header of 16000.mp4": with_sequence_header(base, 16000),
        f"h264 header of {SIDE}.mp4": with_sequence_header(base, SIDE),
        "zlib in matroska.mkv": matroska(zlib.compress(bytes(300 * 2**20), 1)),
        "matroska of 2^56 bytes.mkv": matroska(b"", claimed=2**56 - 2),
    }
    for name, content in written.items():
        path = folder / name
        path.write_bytes(content)
        yield Hostile(path.stem, str(path))
    for side, colours in ((15904, 1), (SIDE, 4)):
        path = folder / f"png of {side}.mov"
        write_pictures(path, [png(side, colours)])
        yield Hostile(path.stem, str(path), sound=side == SIDE)


def claiming_samples(movie: bytes, count: int) -> bytes:
    """An mp4 whose index tables claim ``count`` samples of one byte, in as many bytes as before."""
    data = bytearray(movie)
    tables = {b"stsz": (1, count), b"stts": (1, count, 1), b"stsc": (1, 1, count, 1)}
    for kind, words in tables.items():
        struct.pack_into(f">{len(words)}I", data, data.index(kind) + 8, *words)
    return bytes(data)


def with_sequence_header(movie: bytes, side: int) -> bytes:
    """A baseline H.264 mp4 whose headers claim square frames of ``side`` pixels and 16 of them
    to be kept.
    """
    start = movie.index(b"avcC") - 4
    size = int.from_bytes(movie[start : start + 4], "big")
    old = movie[start + 8 : start + size]
    old_sps = int.from_bytes(old[6:8], "big")
    pps = old[8 + old_sps :]
    sps = bytes([0x67, 66, 0, 62]) + _sequence_bits(side // 16)
    content = old[:6] + struct.pack(">H", len(sps)) + sps + pps
    new = box(b"avcC", content)
    data = bytearray(movie[:start] + new + movie[start + size :])
    struct.pack_into(">2H", data, data.index(b"avc1") + 28, side, side)
    for parent in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        place = data.rindex(parent, 0, start + 4) - 4
        length = int.from_bytes(data[place : place + 4], "big")
        struct.pack_into(">I", data, place, length + len(new) - size)
    return bytes(data)


def _sequence_bits(macroblocks: int) -> bytes:
    """Fields of an H.264 sequence header from its number on (7.3.2.1.1), with the end bit."""
    numbers = (0, 0, 2, 16, None, macroblocks - 1, macroblocks - 1)
    bits = "".join("0" if number is None else _exp_golomb(number) for number in numbers)
    bits += "1100" + "1"
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8, "big")


def _exp_golomb(number: int) -> str:
    digits = f"{number + 1:b}"
    return "0" * (len(digits) - 1) + digits


def png(side: int, colours: int = 1) -> bytes:
    """A black square picture, grey or of RGBA, in few bytes."""
    row, kind = bytes(1 + colours * side), {1: 0, 4: 6}[colours]
    packer = zlib.compressobj(1)
    body = b"".join([packer.compress(row * 16) for _ in range(side // 16)] + [packer.flush()])
    chunks = {
        b"IHDR": struct.pack(">2I5B", side, side, 8, kind, 0, 0, 0),
        b"IDAT": body,
        b"IEND": b"",
    }
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(content))
        + name
        + content
        + struct.pack(">I", zlib.crc32(name + content))
        for name, content in chunks.items()
    )


def write_pictures(path: Path, pictures: Iterable[bytes]) -> None:
    """A movie of PNG pictures, whose header tells of 64 x 64 pixels."""
    with (
        av.open(io.BytesIO(png(64)), format="png_pipe") as small,
        av.open(str(path), "w") as container,
    ):
        stream = container.add_stream_from_template(small.streams.video[0])
        for number, content in enumerate(pictures):
            packet = av.Packet(content)
            packet.stream = stream
            packet.pts = packet.dts = 512 * number
            packet.duration = 512
            packet.is_keyframe = True
            container.mux(packet)


def _ebml(identifier: str, content: bytes, claimed: int | None = None) -> bytes:
    size = len(content) if claimed is None else claimed
    return bytes.fromhex(identifier) + (1 << 56 | size).to_bytes(8, "big") + content


def matroska(block: bytes, claimed: int | None = None) -> bytes:
    """A Matroska file of one block, said to be deflated, of motion JPEG.

    Args:
        claimed: bytes of the whole; None for the truth.
    """
    compression = _ebml("5034", _ebml("4254", b"\0"))
    encoding = _ebml("6240", _ebml("5031", b"\0") + _ebml("5032", b"\1") + compression)
    track = b"".join(
        [
            _ebml("D7", b"\1") + _ebml("73C5", b"\1") + _ebml("83", b"\1"),
            _ebml("86", b"V_MJPEG") + _ebml("E0", _ebml("B0", b"\x40") + _ebml("BA", b"\x40")),
            _ebml("6D80", encoding),
        ]
    )
    head = _ebml("1A45DFA3", _ebml("4282", b"matroska"))
    cluster = _ebml("E7", b"\0") + _ebml("A3", b"\x81\0\0\x80" + block)
    body = _ebml("1549A966", _ebml("2AD7B1", b"\x0f\x42\x40"))
    body += _ebml("1654AE6B", _ebml("AE", track)) + _ebml("1F43B675", cluster)
    return head + _ebml("18538067", body, claimed)


def lies(folder: Path, lures: Lures) -> Iterator[Hostile]:
    """Headers that claim what is not so."""
    avi = encode(folder / "a.avi", Coding("mpeg4", num_frames=20)).read_bytes()
    mkv = encode(folder / "a.mkv", Coding(num_frames=20)).read_bytes()
    mp4 = encode(folder / "a.mp4", Coding(num_frames=20)).read_bytes()
    for name in ("a.avi", "a.mkv", "a.mp4"):
        (folder / name).unlink()
    year = struct.pack(">d", 1e17)
    name_box = box(b"\xa9nam", struct.pack(">2H", 0xFFFF, 0x55C4) + b"x" * 0xFFFF)
    meta = box(b"udta", name_box * 200)
    for name, content, sound in [
        ("avi of 2^31 frames.avi", _avi_claims(avi, 2**31), False),
        ("avi of no frames.avi", _avi_claims(avi, 0), True),
        ("avi of 0 by 0.avi", _patched(avi, b"strf", 8, bytes(8)), True),
        ("avi of 2^31 by 2^31.avi", _patched(avi, b"strf", 8, b"\xff\xff\xff\x7f" * 2), True),
        ("mp4 of 2^32 ticks.mp4", _patched(mp4, b"mdhd", 16, b"\xff" * 4), True),
        ("mp4 of scale 0.mp4", _patched(mp4, b"mdhd", 12, bytes(4)), False),
        ("mp4 of 65535 pixels.mp4", _patched(mp4, b"avc1", 28, b"\xff" * 4), True),
        ("mp4 of a huge box.mp4", _patched(mp4, b"moov", -8, b"\x7f\xff\xff\xff"), True),
        ("mp4 of no samples.mp4", claiming_samples(mp4, 0), False),
        ("mp4 of 13 MB of names.mp4", _with_moov(mp4, meta), True),
        ("mkv of an age.mkv", _matroska_float(mkv, b"\x44\x89\x88", year), True),
        ("mp4 of boxes in boxes.mp4", _nested(), False),
    ]:
        path = folder / name
        path.write_bytes(content)
        yield Hostile(path.stem, str(path), sound)


def _patched(data: bytes, mark: bytes, offset: int, value: bytes) -> bytes:
    """With ``value`` in place of the bytes ``offset`` behind the end of the mark's four letters."""
    start = data.index(mark) + 4 + offset
    return data[:start] + value + data[start + len(value) :]


def _avi_claims(data: bytes, count: int) -> bytes:
    value = struct.pack("<I", count)
    return _patched(_patched(data, b"avih", 4 + 16, value), b"strh", 4 + 32, value)


def _matroska_float(data: bytes, mark: bytes, value: bytes) -> bytes:
    start = data.index(mark) + len(mark)
    return data[:start] + value + data[start + 8 :]


def _with_moov(movie: bytes, extra: bytes) -> bytes:
    """An mp4, whose index is at its end, with one more box in it."""
    start = movie.index(b"moov") - 4
    index = movie[start + 8 :]
    return movie[:start] + box(b"moov", index + extra)


def _nested() -> bytes:
    content = b""
    for _ in range(5000):
        content = box(b"trak", content)
    return box(b"ftyp", b"isom\0\0\0\0isom") + box(b"moov", content)


def odd_names(folder: Path, lures: Lures) -> Iterator[Hostile]:
    """Videos whose names are taken for options, addresses, patterns or lines; text under them."""
    sound = encode(folder / "a.mp4", Coding(num_frames=10)).read_bytes()
    (folder / "a.mp4").unlink()
    playlist = f"ffconcat version 1.0\nfile {lures.secret}\n".encode()
    lines = f"a\n{lures.secret.name}.mp4"
    for number, raw in enumerate(
        [
            *(
                b"-i.mp4",
                b"--help.mp4",
                b"http:/a.mp4",
                b"concat:a.mp4",
                b"%d.mp4",
                b"a%03d.png.mp4",
            ),
            *(lines.encode(), b"\xff\xfe.mp4", b"a b\t.mp4", b"$(id);`id`.mp4", b"subfile,,:.mp4"),
            *(b"\x1b[31m.mp4", b"a|b.mp4", b"~.mp4", b"pipe:0.mp4"),
        ]
    ):
        # A slash leads to a folder of its own.
        path = folder / os.fsdecode(raw)
        path.parent.mkdir(exist_ok=True)
        is_sound = number % 2 == 0
        path.write_bytes(sound if is_sound else playlist)
        yield Hostile(f"name {raw!r}", str(path), is_sound)
    for address in (lures.url, f"concat:{lures.secret}", f"file:{lures.secret}"):
        yield Hostile(f"address {address.split(':')[0]}", address)
    yield Hostile("NUL", f"{lures.secret}\0.mp4")


def not_videos(folder: Path, lures: Lures) -> Iterator[Hostile]:
    """Files without any video, and videos cut short."""
    mp4 = encode(folder / "a.mp4", Coding(num_frames=20)).read_bytes()
    (folder / "a.mp4").unlink()
    for name, content in {
        "text.mp4": b"not a video at all\n" * 100,
        "text.mkv": b"\x1aE\xdf\xa3 nothing",
        "zero bytes.mp4": b"",
        "zeros.mp4": bytes(10**5),
        "one byte.avi": b"R",
        "no index.mp4": mp4[: mp4.index(b"moov")],
        "half.mp4": mp4[: len(mp4) // 2],
        "picture.mp4": png(64),
        "text of lines.ts": b"1\n00:00:00,000 --> 00:00:01,000\nhello\n" * 50,
    }.items():
        path = folder / name
        path.write_bytes(content)
        yield Hostile(name, str(path))
