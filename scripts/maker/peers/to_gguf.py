"""Runs llama.cpp's own converter on a model whose pre-tokenizer it does not know by its checksum.

    python scripts/maker/peers/to_gguf.py --converter convert_hf_to_gguf.py [--pre qwen2] [--outtype bf16] MODEL OUT

The converter tells pre-tokenizers apart by a hash of how they cut one text, and gives up where it has not met the hash; the name
given here stands in for what it would have found. It also gets config.json as it is written: transformers from 5.0 on hands it
over rearranged, so that the converter finds no RoPE base and leaves it out without a word. convert_hf_to_gguf.py is part of
llama.cpp (and of llama-cpp-python's source distributions up to 0.3.16).
"""

import argparse
import importlib.util
import json
import pathlib
import sys

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--converter", type=pathlib.Path, required=True)
parser.add_argument("--pre", default="qwen2", help="the pre-tokenizer's name in llama.cpp")
parser.add_argument("--outtype", default="bf16")
parser.add_argument("model", type=pathlib.Path)
parser.add_argument("out", type=pathlib.Path)
a = parser.parse_args()

sys.path.insert(0, str(a.converter.parent / "gguf-py"))
spec = importlib.util.spec_from_file_location("convert_hf_to_gguf", a.converter)
converter = importlib.util.module_from_spec(spec)
spec.loader.exec_module(converter)
converter.TextModel.get_vocab_base_pre = lambda self, tokenizer: a.pre
converter.ModelBase.load_hparams = staticmethod(lambda directory, *_: json.loads((pathlib.Path(directory) / "config.json").read_text()))
sys.argv = [str(a.converter), str(a.model), "--outfile", str(a.out), "--outtype", a.outtype]
converter.main()
