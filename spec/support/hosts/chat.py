"""chat.py LIBRARY MODEL MESSAGES: the answer to a JSON list of messages, through ctypes."""
import ctypes
import json
import sys
from ctypes import (CFUNCTYPE, POINTER, Structure, byref, c_char, c_char_p, c_int, c_size_t,
                    c_uint64, c_void_p)

lib = ctypes.CDLL(sys.argv[1])
on_piece_type = CFUNCTYPE(c_int, c_void_p, POINTER(c_char), c_size_t)


class GenerateOptions(Structure):
    _fields_ = [("size", c_size_t), ("max_tokens", c_int), ("plain", c_int),
                ("sampler", c_uint64 * 10), ("stop", c_char_p), ("stops", POINTER(c_char_p)),
                ("prompt_length", c_size_t), ("logprobs", c_int), ("alternatives", c_int),
                ("on_piece", on_piece_type)]


lib.pyr_host_open.argtypes = [c_char_p, c_void_p, POINTER(c_void_p)]
lib.pyr_host_generate_chat.argtypes = [c_void_p, c_char_p, c_char_p, POINTER(GenerateOptions)]
lib.pyr_host_error.argtypes, lib.pyr_host_error.restype = [c_void_p], c_char_p
lib.pyr_host_close.argtypes = [c_void_p]

pieces = []


@on_piece_type
def on_piece(_, piece, length):
    pieces.append(piece[:length])
    return 0


# a dict keeps its order, and so does what the template makes of it
tools = [{"name": "weather", "description": "The weather of a place.",
          "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}]
host = c_void_p()
how = GenerateOptions(size=ctypes.sizeof(GenerateOptions), max_tokens=12, on_piece=on_piece)
if lib.pyr_host_open(sys.argv[2].encode(), None, byref(host)) or lib.pyr_host_generate_chat(
        host, sys.argv[3].encode(), json.dumps(tools).encode(), byref(how)):
    sys.exit(lib.pyr_host_error(host).decode())
lib.pyr_host_close(host)
sys.stdout.write(b"".join(pieces).decode())
