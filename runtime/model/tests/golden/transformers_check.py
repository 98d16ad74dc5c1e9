"""Compares this crate, its oracle and transformers' classes with each other, by hand where transformers is installed.

    cargo run --release -p sixfold-model --example families FOLDER
    python3 runtime/model/tests/golden/transformers_check.py FOLDER

1. Every folder that the example wrote: `AutoModelForCausalLM.from_pretrained` knows all of its tensors, has the logits that
   the crate computed within 1e-4, and continues with the same 64 tokens. `AutoModel.from_pretrained(FOLDER)` has the
   `last_hidden_state` whose mean and last row are the crate's vectors of the text within 1e-4.
2. The same after transformers has saved it: the numbers and names of the weights are equal, and the crate must read the
   folder (`cargo test -p sixfold-model --test model transformers`, with SIXFOLD_TRANSFORMERS=FOLDER).
3. Every golden file that oracle.py made: logits and gradients of the loss are those of the class within 1e-6.

Needs torch and transformers.
"""

import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent
IGNORED, SEQUENCES = -100, 2


def distance(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def check_folder(folder):
    model, found = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    assert not any(found[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys")), found
    declared = json.loads((folder / "config.json").read_text())["architectures"]
    assert [type(model).__name__] == declared, (type(model), declared)
    computed = json.loads((folder / "computed.json").read_text())
    prompt = torch.tensor([computed["prompt"]])
    with torch.no_grad():
        logits = model(prompt).logits[0]
        off = (logits - torch.tensor(computed["logits"])).abs().max().item()
        tokens = prompt
        for _ in computed["generated"]:
            tokens = torch.cat([tokens, model(tokens).logits[:, -1:].argmax(-1)], dim=1)
        states = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")(prompt)
    states = states.last_hidden_state[0]
    of_vectors = max(
        (torch.tensor(computed[name]) - vector).abs().max().item()
        for name, vector in (("mean", states.mean(0)), ("last", states[-1]))
    )
    generated = tokens[0, prompt.shape[1] :].tolist()
    equal = sum(ours == theirs for ours, theirs in zip(computed["generated"], generated))
    saved = folder / "saved_by_transformers"
    model.save_pretrained(saved)
    ours, theirs = load_file(folder / "model.safetensors"), load_file(saved / "model.safetensors")
    assert ours.keys() == theirs.keys(), ours.keys() ^ theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    print(f"{folder.name:14} {declared[0]:20} logits off by {off:.1e}, {equal} of {len(generated)} tokens equal, "
          f"vectors of texts off by {of_vectors:.1e}")
    assert off < 1e-4 and of_vectors < 1e-4 and equal == len(generated)
    return {"logits": off, "tokens": equal, "vectors": of_vectors}


def check_golden(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    config = json.loads(metadata["config"])
    config = transformers.AutoConfig.for_model(config.pop("model_type"), **config)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    weights = {n: t for n, t in tensors.items() if n.startswith(("model.", "transformer.", "lm_head."))}
    found = model.load_state_dict(weights, strict=False)
    tied = {"lm_head.weight"} if config.tie_word_embeddings else set()
    assert not found.unexpected_keys and set(found.missing_keys) <= tied, found
    model.tie_weights()
    tokens, targets = (tensors[name].long().view(SEQUENCES, -1) for name in ("tokens", "targets"))
    length = tokens.shape[1]
    starts = tensors["document_starts"].tolist()
    document = [sum(row >= start for start in starts) - 1 for row in range(SEQUENCES * length)]
    position = torch.tensor([row - starts[document[row]] for row in range(SEQUENCES * length)]).view(SEQUENCES, -1)
    document = torch.tensor(document).view(SEQUENCES, -1)
    seen = torch.ones(length, length, dtype=torch.bool).tril() & (document[:, :, None] == document[:, None, :])
    mask = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)[:, None]
    logits = model(input_ids=tokens, attention_mask=mask, position_ids=position, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)
    loss.backward()
    of_logits = distance(logits.detach(), tensors["logits"].view(logits.shape).double())
    named = {name: tensors[f"gradient.{name}"].double() for name, _ in model.named_parameters()}
    worst = max(distance(p.grad, named[name]) for name, p in model.named_parameters())
    print(f"{path.stem:14} {type(model).__name__:20} logits differ by {of_logits:.1e}, gradients by {worst:.1e}")
    assert of_logits < 1e-6 and worst < 1e-5


def main(folder):
    print(f"torch {torch.__version__}, transformers {transformers.__version__}")
    for path in sorted(GOLDEN.glob("*.safetensors")):
        check_golden(path)
    for path in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        check_folder(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
