"""Compares adapters with PEFT, in both directions, by hand where peft is installed.

    cargo run --release -p sixfold-model --example families FOLDER
    cargo build --release -p sixfold
    python3 runtime/model/tests/golden/peft_check.py FOLDER target/release/sixfold

For every folder that the example wrote, a model of each family:
1. The adapters that the crate wrote beside it, of all projections and of some: PEFT loads them (`PeftModel.from_pretrained`),
   has every number of the file and no other, and the log-probabilities of the prompt that it computes are those of
   `sixfold model merge` and `sixfold model logprobs` within 1e-4.
2. Adapters that PEFT makes of random numbers, of all linear modules, with ranks and scales that differ, and with
   rank-stabilized scales: once saved by it, the same.

Needs torch, transformers and peft.
"""

import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import load_file

# Every linear module is a target here; PEFT wonders about those whose weights lie transposed.
warnings.filterwarnings("ignore", message="fan_in_fan_out is set to False")


def configurations(gpt2):
    """What PEFT is asked for."""
    query, down = ("c_attn", "mlp.c_proj") if gpt2 else ("q_proj", "down_proj")
    return {
        "of all": dict(target_modules="all-linear", r=4, lora_alpha=8),
        "of two": dict(
            target_modules=[query, down], r=2, lora_alpha=3, rank_pattern={down: 5}, alpha_pattern={query: 7}
        ),
        "stabilized": dict(target_modules=[query], r=6, lora_alpha=4, use_rslora=True),
    }


def base(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


def scores(model, prompt):
    with torch.no_grad():
        logprobs = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
    return logprobs[:-1].gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]


def ours(sixfold, folder, adapter, prompt):
    with tempfile.TemporaryDirectory() as place:
        merged = Path(place) / "merged"
        merge = [sixfold, "model", "merge", folder, "--adapter", adapter, "--to", merged, "--json"]
        subprocess.run(merge, check=True, capture_output=True)
        ids = ",".join(map(str, prompt))
        scored = subprocess.run(
            [sixfold, "model", "logprobs", merged, "--ids", ids, "--json"], check=True, capture_output=True
        )
    return torch.tensor(json.loads(scored.stdout)["logprobs"])


def check_folder(sixfold, folder):
    prompt = json.loads((folder / "computed.json").read_text())["prompt"]
    plain, off = scores(base(folder), prompt), {"written": 0.0, "read": 0.0}
    written = sorted(folder.glob("adapter_of_*"))
    assert written, f"{folder} has no adapters: the example makes them"
    for adapter in written:
        model = peft.PeftModel.from_pretrained(base(folder), adapter)
        held, file = peft.get_peft_model_state_dict(model), load_file(adapter / "adapter_model.safetensors")
        assert held.keys() == file.keys(), held.keys() ^ file.keys()
        assert all(torch.equal(held[name], file[name]) for name in file)
        theirs = scores(model, prompt)
        assert (theirs - plain).abs().max() > 0.05, "an adapter that does nothing"
        off["written"] = max(off["written"], (ours(sixfold, folder, adapter, prompt) - theirs).abs().max().item())
    for name, options in configurations(folder.name == "gpt2").items():
        torch.manual_seed(5)
        model = peft.get_peft_model(base(folder), peft.LoraConfig(init_lora_weights=False, **options)).eval()
        theirs = scores(model, prompt)
        assert (theirs - plain).abs().max() > 0.05, f"{name}: an adapter that does nothing"
        with tempfile.TemporaryDirectory() as adapter:
            model.save_pretrained(adapter)
            off["read"] = max(off["read"], (ours(sixfold, folder, adapter, prompt) - theirs).abs().max().item())
    print(f"{folder.name:14} log-probabilities off by {off['written']:.1e} where PEFT reads, {off['read']:.1e} where it writes")
    assert max(off.values()) < 1e-4
    return off


def main(folder, sixfold):
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")
    for path in sorted(path for path in Path(folder).iterdir() if path.is_dir()):
        check_folder(sixfold, path)


if __name__ == "__main__":
    main(*sys.argv[1:])
