"""facade.py LIBRARY MODEL: a host in Python, through ctypes. Prints a text, or what went wrong."""
import ctypes
import sys
from ctypes import (CFUNCTYPE, POINTER, Structure, byref, c_char, c_char_p, c_int, c_size_t,
                    c_uint64, c_void_p)

lib = ctypes.CDLL(sys.argv[1])


class HostOptions(Structure):
    """As far as this host knows it: `size` says how far that is."""
    _fields_ = [("size", c_size_t), ("device", c_char_p), ("threads", c_int),
                ("read_weights", c_int), ("weights", c_char_p), ("precision", c_char_p),
                ("policy", c_char_p), ("policy_options", c_char_p)]


on_piece_type = CFUNCTYPE(c_int, c_void_p, POINTER(c_char), c_size_t)


class GenerateOptions(Structure):
    _fields_ = [("size", c_size_t), ("max_tokens", c_int), ("plain", c_int),
                ("sampler", c_uint64 * 10), ("stop", c_char_p), ("stops", POINTER(c_char_p)),
                ("prompt_length", c_size_t), ("logprobs", c_int), ("alternatives", c_int),
                ("on_piece", on_piece_type)]


lib.pyr_host_open.argtypes = [c_char_p, POINTER(HostOptions), POINTER(c_void_p)]
lib.pyr_host_generate.argtypes = [c_void_p, c_char_p, POINTER(GenerateOptions)]
lib.pyr_host_error.argtypes, lib.pyr_host_error.restype = [c_void_p], c_char_p
lib.pyr_host_close.argtypes = [c_void_p]

pieces = []


@on_piece_type
def on_piece(_, piece, length):
    pieces.append(piece[:length])
    return 0


host = c_void_p()
options = HostOptions(size=ctypes.sizeof(HostOptions), threads=1, policy=b"pyramidinfer",
                      policy_options=b"recent=0.3 floor=4")
how = GenerateOptions(size=ctypes.sizeof(GenerateOptions), max_tokens=40, on_piece=on_piece)
failed = lib.pyr_host_open(sys.argv[2].encode(), byref(options), byref(host)) or \
    lib.pyr_host_generate(host, b"hello world", byref(how))
if failed:
    sys.exit(lib.pyr_host_error(host).decode())
lib.pyr_host_close(host)
sys.stdout.write(b"".join(pieces).decode())
