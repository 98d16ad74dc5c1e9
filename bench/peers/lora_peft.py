#!/usr/bin/env python3
"""The peer of `sixfold bench train --lora-rank R`: training steps of LoRA adapters by PEFT and PyTorch on the CPU.

  lora_peft.py [--mode eager|compile] [--dtype f32|bf16] [--rank 8] [--threads 2] [--steps 3] [--warmup 1] [shape flags]

Random weights and tokens of the given shape, adapters of all linear layers of the decoder, AdamW on them alone. Prints one line
of JSON with the keys of `sixfold bench train`; `import_mib` is the resident memory after the imports alone.
Needs torch, transformers and peft.
"""
import argparse, json, os, resource, statistics, time

parser = argparse.ArgumentParser()
parser.add_argument("--mode", choices=["eager", "compile"], default="eager")
parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
parser.add_argument("--tied", action="store_true")
for name, default in dict(rank=8, threads=2, steps=3, warmup=1, dim=576, layers=30, heads=9, kv_heads=3, hidden=1536,
                          vocab=49152, seq=256, batch=8).items():
    parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
args = parser.parse_args()
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = str(args.threads)

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM


def resident_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


import_mib = resident_mib()
torch.set_num_threads(args.threads)
torch.manual_seed(0)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
config = LlamaConfig(
    hidden_size=args.dim, num_hidden_layers=args.layers, num_attention_heads=args.heads,
    num_key_value_heads=args.kv_heads, intermediate_size=args.hidden, vocab_size=args.vocab,
    max_position_embeddings=args.seq, tie_word_embeddings=args.tied, use_cache=False)
model = LlamaForCausalLM(config).to(dtype)
targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
model = get_peft_model(model, LoraConfig(r=args.rank, lora_alpha=16, target_modules=targets, task_type="CAUSAL_LM"))
trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
optimizer = torch.optim.AdamW(trained, lr=1e-3)
forward = torch.compile(model) if args.mode == "compile" else model
times, cpu, loss0 = [], [], None
for step in range(args.warmup + args.steps + 1):
    tokens = torch.randint(args.vocab, (args.batch, args.seq))
    since, cpu_since = time.perf_counter(), time.process_time()
    loss = forward(input_ids=tokens, labels=tokens).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if step > args.warmup:
        times.append(time.perf_counter() - since)
        cpu.append(time.process_time() - cpu_since)
    loss0 = loss0 if loss0 is not None else loss.item()
tokens = args.batch * args.seq
print(json.dumps(dict(
    peer=f"peft on torch {torch.__version__}", mode=f"{args.mode} {args.dtype}", threads=args.threads,
    params=sum(parameter.numel() for parameter in model.parameters()), trained=sum(p.numel() for p in trained),
    tok_s=round(tokens / statistics.median(times)), best_tok_s=round(tokens / min(times)),
    step_ms=round(statistics.median(times) * 1e3, 1), cpu_s_per_step=round(statistics.median(cpu), 2),
    loss0=round(loss0, 3), rss_mib=round(resident_mib()), import_mib=round(import_mib))))
