"""Compares ONNX folders that `sixfold model export` writes with transformers' classes, by hand where onnxruntime is installed.

    cargo run --release -p sixfold-model --example families FOLDER
    python3 runtime/model/tests/golden/onnx_check.py SIXFOLD FOLDER [--tokens N] [--dtype f16]

For every model folder in FOLDER: SIXFOLD, the binary, writes it as ONNX; `onnx.checker` finds nothing against it, with the
shapes of all values inferred; and by onnxruntime
1. logits of a prompt of 37 tokens are those of the class within 1e-4 of the largest of them, at once, and in two calls of
   30 and 7 with the keys and values of the first;
2. N (64) greedy tokens, one at a time with keys and values of all before, are the same;
3. so are those of two prompts of different lengths side by side, the shorter one padded on the left.

Prompts are ids, so that no tokenizer is needed. With `--dtype f16` the class has weights rounded to f16, too.
Needs torch, transformers, onnx and onnxruntime.
"""

import argparse
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import transformers

PROMPT, SHORT, FIRST = 37, 20, 30


class Exported:
    """A folder with ONNX, and the keys and values of the calls so far."""

    def __init__(self, folder, threads):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        path = str(folder / "model.onnx")
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.cache = [i for i in self.session.get_inputs() if i.name.startswith("past_key_values.")]
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.past = None

    def start(self, batch):
        self.past = {i.name: np.zeros((batch, i.shape[1], 0, i.shape[3]), np.float32) for i in self.cache}

    def __call__(self, tokens, mask):
        """Logits of new tokens, [batch, new, vocabulary]; the mask has a column for each of the past as well."""
        new = tokens.shape[1]
        position = np.maximum(mask.cumsum(1) - 1, 0)[:, -new:]
        given = {"input_ids": tokens, "attention_mask": mask, "position_ids": position, **self.past}
        values = dict(zip(self.outputs, self.session.run(None, given)))
        logits = values.pop("logits")
        self.past = {name.replace("present.", "past_key_values."): value for name, value in values.items()}
        return logits

    def greedy(self, tokens, mask, count):
        self.start(len(tokens))
        generated = []
        for _ in range(count):
            tokens = self(tokens, mask)[:, -1:].argmax(-1)
            mask = np.concatenate([mask, np.ones_like(tokens)], axis=1)
            generated.append(tokens)
        return np.concatenate(generated, axis=1)


def greedy_of_class(model, tokens, mask, count):
    """Without keys and values of the past, so that these are checked too."""
    tokens, mask = torch.tensor(tokens), torch.tensor(mask)
    prompt = tokens.shape[1]
    for _ in range(count):
        position = (mask.cumsum(1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(tokens, attention_mask=mask, position_ids=position, use_cache=False).logits
        tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
        mask = torch.cat([mask, torch.ones_like(tokens[:, -1:])], dim=1)
    return tokens[:, prompt:].numpy()


def check(sixfold, folder, count, dtype, threads):
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    if dtype == "f16":
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data = parameter.data.half().float()
    with tempfile.TemporaryDirectory() as place:
        target = Path(place) / "onnx"
        command = [sixfold, "model", "export", folder, "--format", "onnx", "--dtype", dtype, "--to", target, "--json"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        onnx.checker.check_model(target / "model.onnx", full_check=True)
        exported = Exported(target, threads)
    vocabulary = model.config.vocab_size
    prompt = np.array([[(i * i * 7 + i * 3 + 5) % vocabulary for i in range(PROMPT)]])
    seen = np.ones_like(prompt)
    with torch.no_grad():
        expected = model(torch.tensor(prompt)).logits.numpy()
    exported.start(1)
    whole = exported(prompt, seen)
    exported.start(1)
    parts = [exported(prompt[:, :FIRST], seen[:, :FIRST]), exported(prompt[:, FIRST:], seen)]
    off = max(np.abs(logits - expected).max() for logits in (whole, np.concatenate(parts, axis=1)))
    largest = np.abs(expected).max()

    theirs = greedy_of_class(model, prompt, seen, count)
    equal = (exported.greedy(prompt, seen, count) == theirs).sum()

    padding = PROMPT - SHORT
    two = np.concatenate([prompt, np.pad((prompt[:, :SHORT] + 1) % vocabulary, ((0, 0), (padding, 0)))])
    mask = np.concatenate([seen, np.pad(seen[:, :SHORT], ((0, 0), (padding, 0)))])
    alone = greedy_of_class(model, two[1:, padding:], mask[1:, padding:], count)
    batch = (exported.greedy(two, mask, count) == np.concatenate([theirs, alone])).sum()
    print(
        f"{folder.name:24} {model.config.model_type:8} logits to {largest:7.3f} off by {off:.1e}, "
        f"{equal} of {count} tokens equal, {batch} of {2 * count} in a batch"
    )
    return off <= 1e-4 * max(1.0, largest) and equal == count and batch == 2 * count


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sixfold", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--dtype", choices=["f32", "f16"], default="f32")
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    versions = f"onnx {onnx.__version__}, onnxruntime {onnxruntime.__version__}"
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {versions}")
    folders = sorted(path for path in args.folder.iterdir() if (path / "config.json").exists())
    assert folders, f"no model folders in {args.folder}"
    passed = [check(args.sixfold.resolve(), folder, args.tokens, args.dtype, args.threads) for folder in folders]
    assert all(passed), f"{passed.count(False)} of {len(passed)} differ"


if __name__ == "__main__":
    main()
