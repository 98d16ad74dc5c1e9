"""Makes llama.safetensors, what PyTorch computes with a model that this crate exported.

    cargo run --release -p sixfold-model --example golden_model FOLDER
    python3 runtime/model/tests/golden/make.py FOLDER runtime/model/tests/golden/llama.safetensors

The model is transformers' LlamaForCausalLM, loaded from the exported config.json and
model.safetensors. The file holds the exported weights under their names, the batch, the logits,
every gradient of the mean loss, and the losses of ten steps of torch.optim.AdamW; its metadata holds
config.json, the optimizer's options and the versions used. Needs torch, transformers, safetensors.
"""

import json
import math
import platform
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file

LENGTH, SEQUENCES, STEPS, IGNORED = 72, 2, 10, -100
# Rows at which documents begin: the first sequence packs two, the second is one.
DOCUMENT_STARTS = [0, 30, 72]
OPTIMIZER = {
    "learning_rate": 0.01,
    "final_learning_rate_ratio": 0.1,
    "warmup_steps": 3,
    "steps": STEPS,
    "beta1": 0.9,
    "beta2": 0.95,
    "epsilon": 1e-8,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
}


def batch(vocabulary):
    """Tokens, targets, positions and the number of each row's document, all [sequences, length]."""
    rows = LENGTH * SEQUENCES
    stream = [(i * i * 7 + i * 3 + 5) % vocabulary for i in range(rows + 1)]
    document = [sum(row >= start for start in DOCUMENT_STARTS) - 1 for row in range(rows)]
    position = [row - DOCUMENT_STARTS[document[row]] for row in range(rows)]
    # The last token of a document does not predict the first of the next.
    target = [IGNORED if row + 1 in DOCUMENT_STARTS else stream[row + 1] for row in range(rows)]
    return [torch.tensor(values).view(SEQUENCES, LENGTH) for values in (stream[:-1], target, position, document)]


def loss_of(model, tokens, targets, positions, documents):
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    seen = causal & (documents[:, :, None] == documents[:, None, :])
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -math.inf)[:, None]
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=positions, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    return loss, logits


def learning_rate(step):
    high, warmup = OPTIMIZER["learning_rate"], OPTIMIZER["warmup_steps"]
    if step < warmup:
        return high * (step + 1) / warmup
    low = high * OPTIMIZER["final_learning_rate_ratio"]
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (OPTIMIZER["steps"] - warmup)))


def train(model, inputs):
    """The loss of each step before its update."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    norms = [p for p in model.parameters() if p.dim() == 1]
    groups = [{"params": weights, "weight_decay": OPTIMIZER["weight_decay"]}, {"params": norms, "weight_decay": 0.0}]
    betas = (OPTIMIZER["beta1"], OPTIMIZER["beta2"])
    adamw = torch.optim.AdamW(groups, betas=betas, eps=OPTIMIZER["epsilon"])
    losses = []
    for step in range(STEPS):
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step)
        adamw.zero_grad()
        loss, _ = loss_of(model, *inputs)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER["clip_norm"])
        adamw.step()
        losses.append(loss.item())
    return losses


def main(folder, out):
    model = transformers.LlamaForCausalLM.from_pretrained(
        folder, dtype=torch.float64, attn_implementation="eager"
    ).train()
    inputs = batch(model.config.vocab_size)
    loss, logits = loss_of(model, *inputs)
    loss.backward()
    tensors = load_file(Path(folder) / "model.safetensors")
    assert set(tensors) == {name for name, _ in model.named_parameters()}, "other tensors than transformers knows"
    for name, parameter in model.named_parameters():
        tensors[f"gradient.{name}"] = parameter.grad.float()
    tensors["logits"] = logits.detach().float()
    tensors["tokens"], tensors["targets"] = (values.to(torch.int32) for values in inputs[:2])
    tensors["document_starts"] = torch.tensor(DOCUMENT_STARTS, dtype=torch.int32)
    tensors["losses"] = torch.tensor(train(model, inputs), dtype=torch.float32)
    versions = f"python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}"
    metadata = {
        "config": (Path(folder) / "config.json").read_text(),
        "optimizer": json.dumps(OPTIMIZER),
        "versions": versions,
    }
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, out, metadata)
    print(versions, "losses", tensors["losses"].tolist())


if __name__ == "__main__":
    main(*sys.argv[1:])
