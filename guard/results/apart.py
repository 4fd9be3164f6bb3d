"""Open a film or sound, and hear its sounds, in a process of its own first: on files that nobody foresaw libraries in C
end the process, or do not come back.

Seen with PyAV 18: a layout of channels in an order of its own is freed twice by whoever asks for it, and eight channels
with a plane each are read past their end. Either ends the whole process, in ComfyUI's loaders as well as here. To open
a file of 600 KB with 50,000 titles takes half a minute, since libav compares each with all before.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import IO, Literal

from ..errors import ServerUnavailableError
from .containers import BrokenFileError, Kind
from .film_files import describe_opening, open_container
from .samples import MOST_DECODED

#: By the clock, however busy the machine is.
LONGEST_S = 120
#: Processor time to open the file, where an ordinary one takes hundredths of a second, and for all of it: a sound of an
#: hour takes some three seconds. Only where the system can limit it, Windows does not.
OPENED_WITHIN_S, HEARD_WITHIN_S = 10, 90
#: So many samples of each sound, of all channels together, are heard for a loader of this server: three hours in
#: stereo. What follows could still end it, so more than that is refused.
MOST_SAMPLES = 48_000 * 3600 * 3 * 2
#: Memory that the child may have had at its end: who opens the file here needs as much. Each cover is decoded as the
#: file is opened, a hundred of 268 megapixels would be 200 GB. A film of 8K in an MPEG stream takes 1.6 GiB. Only
#: where Linux tells.
MOST_MEMORY = 2 << 30
#: How the child says that there is more, that it took more, and, as Python does, that it could not begin.
TOO_LONG, TOO_LARGE, NOT_BEGUN = 3, 4, 1
#: Ended from outside, mostly for want of memory.
KILLED = -9
#: How the system ends a process that has had its processor time.
_OUT_OF_TIME = -getattr(signal, "SIGXCPU", 0) or None
_TOO_SLOW = "it takes too long to read"
#: A container's own order of channels is not looked at by their decoders.
_IN_ORDER = frozenset({"aac", "mp3", "mp3float", "flac", "opus", "libopus", "vorbis", "libvorbis", "ac3", "eac3"})
#: How often it asks for the same thing: a memory that is freed twice is seen by the system at the second time.
ASKED = 20

#: What loaders do: ask for the channels, decode, and make arrays of the frames. What raises is found again by whoever
#: hears it in the server, and told there. It opens the file as :func:`open_container` does where it is not strict.
_HEAR = f"""
import gc, json, sys, time
sys.path[:] = json.loads(sys.argv[1])
import av
try:
    import resource
except ImportError:
    resource = None

def allow(seconds):
    if resource is not None:
        most = min(int(time.process_time() + seconds) + 1, {HEARD_WITHIN_S})
        resource.setrlimit(resource.RLIMIT_CPU, (most, {HEARD_WITHIN_S}))

def ask(sound):
    for _ in range({ASKED}):
        sound.codec_context.layout.nb_channels, sound.layout.nb_channels
    gc.collect()

def hear(container, sound):
    resampler, samples = av.AudioResampler(format="fltp"), 0
    for packet in container.demux(sound):
        try:
            for frame in packet.decode():
                samples += frame.samples * frame.layout.nb_channels
                if makes == "arrays":
                    frame.to_ndarray()
                elif makes == "planes":
                    for part in resampler.resample(frame):
                        part.to_ndarray()
        except (av.FFmpegError, ValueError, NotImplementedError):
            resampler = av.AudioResampler(format="fltp")
        if makes and samples > {MOST_SAMPLES}:
            sys.exit({TOO_LONG})
        if not makes and samples > {MOST_DECODED}:
            break

def open_container():
    sys.stdin.buffer.seek(0)
    try:
        return av.open(sys.stdin.buffer, metadata_errors="ignore", **facts)
    except TypeError:
        return av.open(sys.stdin.buffer, **facts)

facts, makes = json.loads(sys.argv[2]), sys.argv[3]
if resource is not None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
allow({OPENED_WITHIN_S})
try:
    with open_container() as container:
        count = len(container.streams.audio)
    allow({HEARD_WITHIN_S})
    for at in range(count):
        with open_container() as container:
            sound = container.streams.audio[at]
            if sound.codec_context is not None:
                ask(sound)
                hear(container, sound)
except Exception:
    pass
gc.collect()
try:
    with open("/proc/self/status") as status:  # getrusage counts what its parent had when this began
        (peak,) = (int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM:"))
except (OSError, ValueError):
    peak = 0
sys.exit({TOO_LARGE} if peak > {MOST_MEMORY} else 0)
"""


def hear_apart(handle: IO[bytes], kind: Kind, makes: Literal["arrays", "planes", ""]) -> None:
    """Have a child process open a file and hear all its sounds. Blocks as long; leaves the handle at its start.

    Args:
        makes: what its loader makes of a frame: an array, one with a plane for each channel, or nothing in this server.

    Raises:
        BrokenFileError: the child has ended of it, or it takes too long.
        ServerUnavailableError: there can be no child now.
    """
    opening = json.dumps(describe_opening(kind))
    command = [sys.executable, "-I", "-c", _HEAR, json.dumps(sys.path), opening, makes]
    # Child and handle share one place in the file, of which the handle's buffer must not notice that it was moved.
    at = os.lseek(handle.fileno(), 0, os.SEEK_CUR)
    try:
        done = subprocess.run(command, stdin=handle, capture_output=True, timeout=LONGEST_S)
    except subprocess.TimeoutExpired:
        raise BrokenFileError(_TOO_SLOW) from None
    except OSError as error:
        raise _fail(str(error)) from None
    finally:
        os.lseek(handle.fileno(), at, os.SEEK_SET)
        handle.seek(0)
    if done.returncode == _OUT_OF_TIME:
        raise BrokenFileError(_TOO_SLOW)
    if done.returncode == TOO_LONG:
        raise BrokenFileError("its sound is longer than three hours")
    if done.returncode == TOO_LARGE:
        raise BrokenFileError("it takes too much memory to open; its covers are too large, or too many")
    if done.returncode in (NOT_BEGUN, KILLED):
        raise _fail(done.stderr.decode(errors="replace")[-200:])
    if done.returncode:
        # By a signal, or, on Windows, an exception of its kind.
        raise BrokenFileError("its sound ends the process that reads it; save it anew, in stereo, as WAV, FLAC or MP3")


def hear_odd_apart(handle: IO[bytes], kind: Kind) -> None:
    """The same for a result, where its container may hold channels in an order of their own. Raises as `hear_apart`."""
    if kind.demuxer != "mov":
        return
    handle.seek(0)
    with open_container(handle, kind) as container:
        sounds = [sound.codec_context.name for sound in container.streams.audio if sound.codec_context is not None]
    handle.seek(0)
    if not _IN_ORDER.issuperset(sounds):
        hear_apart(handle, kind, "arrays")


def _fail(why: str) -> ServerUnavailableError:
    return ServerUnavailableError("A sound cannot be looked at now.", details=why, retry_after_s=10)
