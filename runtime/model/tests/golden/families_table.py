"""Prints the table of families beside transformers, PyTorch, peft and gguf, by hand where these are installed.

    cargo run --release -p sixfold-model --example families FOLDER
    cargo test --release -p sixfold-model --test model golden -- --nocapture > GRADIENTS
    cargo build --release -p sixfold
    python3 runtime/model/tests/golden/families_table.py FOLDER target/release/sixfold GRADIENTS

What is checked is what transformers_check.py and peft_check.py say, and for every folder two round trips more:
1. `sixfold model export --format safetensors`: transformers loads it and has the crate's logits within 1e-4.
2. `sixfold model export --format gguf --dtype f32`: the Python package gguf reads the numbers of the model, to the bit (rows of
   queries and keys may stand in another order), and `sixfold model import` makes a model of it with the same bits in
   the same tensors. What GGUF has no words for is refused, with the reason.

Needs torch, transformers, peft and gguf.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import gguf
import numpy
import peft
import torch
import transformers
from peft_check import check_folder as check_adapters
from safetensors.torch import load_file
from transformers_check import check_folder as check_model

# The golden file from which the gradients of a folder's kind of model are known.
GOLDEN = {"smollm2": "llama_tied", "gpt2": "gpt2_tied", "mistral": "llama", "qwen2_window": "qwen2", "qwen3_biases": "qwen3"}


def run(sixfold, *arguments):
    """Nothing, or why it was refused."""
    done = subprocess.run([sixfold, "model", *map(str, arguments), "--json"], capture_output=True, text=True)
    return None if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def reason(refused):
    return refused.split(": ", 2)[-1].replace("|", "\\|")


def exported(sixfold, folder, place):
    """How far the logits of the exported model are off in transformers."""
    refused = run(sixfold, "export", folder, "--format", "safetensors", "--to", place / "exported")
    assert refused is None, refused
    computed = json.loads((folder / "computed.json").read_text())
    model = transformers.AutoModelForCausalLM.from_pretrained(
        place / "exported", dtype=torch.float32, attn_implementation="eager"
    )
    with torch.no_grad():
        logits = model(torch.tensor([computed["prompt"]])).logits[0]
    off = (logits - torch.tensor(computed["logits"])).abs().max().item()
    assert off < 1e-4, off
    return off


def through_gguf(sixfold, folder, place):
    file = place / "model.gguf"
    refused = run(sixfold, "export", folder, "--format", "gguf", "--dtype", "f32", "--to", file)
    if refused:
        return f"not written: {reason(refused)}"
    ours = load_file(folder / "model.safetensors")
    read = {tensor.name: numpy.array(tensor.data) for tensor in gguf.GGUFReader(file).tensors}
    # Factors of scaled positions are no weights.
    read = [data.reshape(-1) for name, data in read.items() if not name.startswith("rope_")]
    expected = numpy.sort(numpy.concatenate([tensor.numpy().reshape(-1) for tensor in ours.values()]))
    assert numpy.array_equal(numpy.sort(numpy.concatenate(read)), expected), f"{folder.name}: numbers in GGUF"
    refused = run(sixfold, "import", file, "--to", place / "imported", "--dtype", "f32")
    if refused:
        return f"{len(ours)} tensors, equal; not read: {reason(refused)}"
    again = load_file(place / "imported" / "model.safetensors")
    assert again.keys() == ours.keys() and all(torch.equal(again[name], ours[name]) for name in ours), folder.name
    return f"{len(ours)} tensors, equal"


def main(folder, sixfold, gradients):
    lines = re.findall(r"(?m)^(\w+): gradients differ by (\S+) at most", Path(gradients).read_text())
    gradients = dict(lines)
    rows = []
    for path in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        of_model, adapters = check_model(path), check_adapters(sixfold, path)
        with tempfile.TemporaryDirectory() as place:
            off, of_gguf = exported(sixfold, path, Path(place)), through_gguf(sixfold, path, Path(place))
        golden = path.name if path.name in gradients else GOLDEN.get(path.name)
        gradient = gradients.get(golden, "")
        if gradient and golden != path.name:
            gradient += f" (`{golden}`)"
        rows.append(
            f"| {path.name} | {of_model['logits']:.1e} | {of_model['tokens']} of 64 | {gradient} | {off:.1e} | "
            f"{of_model['vectors']:.1e} | {adapters['written']:.1e}, {adapters['read']:.1e} | {of_gguf} | |"
        )
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    print(f"\n{versions}\n")
    print("| model | logits | greedy tokens | gradients | logits, exported | vectors of texts | peft: ours, theirs | gguf | onnxruntime |")
    print("|---|---:|---:|---|---:|---:|---:|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main(*sys.argv[1:])
