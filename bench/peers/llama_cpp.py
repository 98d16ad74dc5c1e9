#!/usr/bin/env python3
"""Whether Sixfold answers as llama.cpp does: the first greedy tokens of 20 prompts, compared one by one.

  llama_cpp.py MODEL.gguf --sixfold target/release/sixfold [--tokens 32] [--threads 2] [--keep FOLDER] [--details]

`sixfold model import` makes a folder of the file (a quantised number becomes the f32 number that it stands for) and
`sixfold model export` an f32 GGUF file of that folder. Then three parties answer each prompt, all of them from the ids
that `sixfold chat --json` read, which llama.cpp's own rendering and tokenizer are compared with:

  sixfold   `sixfold chat`, which computes in f32 whatever the file had
  file      llama.cpp on the file. Its products round what is multiplied with quantised weights to 8 bits, and its
            cache holds keys and values in f16, so that it computes something else, on purpose
  f32       llama.cpp on the f32 file, with keys and values in f32: here it does the same arithmetic, in another order

One line of JSON tells how many tensors of the folder have exactly the numbers that gguf's own Python code makes of the file
(`tensors_equal` of `tensors`). For each pair of parties it tells how many answers are the same in all their tokens (`equal`), how many tokens are on
average before the first that differs (`prefix_mean`), and the largest difference between both log-probabilities of one of
those (`logprob_diff`). For an answer that differs `gaps` has by how much llama.cpp, the second of the pair, prefers its token
over that of the first: a small gap is a tie that rounding decides. An answer ends with its end-of-text token, which counts.
With --details each answer is told too. The file is a Llama's. Needs xllamacpp, gguf and safetensors.
"""
import argparse, concurrent.futures, json, multiprocessing, pathlib, subprocess, sys, tempfile, urllib.request

PROMPTS = [
    "What is the capital of France?",
    "Why is the sky blue?",
    "How many legs does a spider have?",
    "Who wrote Romeo and Juliet?",
    "What is the boiling point of water at sea level?",
    "Name three primary colors.",
    "List five fruits that grow on trees.",
    "Write a Python function that adds two numbers.",
    "Write a loop in C that prints the numbers from 1 to 10.",
    "What does this command do: ls -la?",
    "Tell me a short story about a fox and a river.",
    "Write a poem of four lines about the sea.",
    "Explain photosynthesis to a child.",
    "Translate into Spanish: Good morning, my friend.",
    "What is 17 + 25?",
    "Give me two tips for sleeping better.",
    "Summarize in one sentence: The cat sat on the mat because the floor was cold.",
    "What is the difference between a list and a tuple in Python?",
    "How do I boil an egg?",
    "Write a polite email that asks for a day off.",
]


def by_sixfold(args, folder):
    """Prompts and answers of Sixfold: one process, whose conversation is forgotten after each prompt."""
    lines = "".join(f"{prompt}\n/reset\n" for prompt in PROMPTS)
    command = [args.sixfold, "chat", str(folder), "--json", "--temperature", "0", "--max-tokens", str(args.tokens),
               "--threads", str(args.threads)]
    said = subprocess.run(command, input=lines, capture_output=True, text=True, check=True).stdout
    answers = [json.loads(line) for line in said.splitlines()]
    assert len(answers) == len(PROMPTS), f"{len(answers)} answers"
    return answers


def by_llama_cpp(file, plain_cache, prompts, tokens, threads):
    """In a process of its own: answers of llama.cpp to prompts of ids, and the ids that it would have made of the texts."""
    import xllamacpp as llama

    params = llama.CommonParams()
    params.model.path = str(file)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.warmup = 2048, 1, 0, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    if plain_cache:
        params.cache_type_k = params.cache_type_v = llama.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = llama.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = llama.Server(params)

    def post(path, **body):
        request = urllib.request.Request(f"{server.listening_address}{path}", json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as response:
            return json.load(response)

    answers = []
    for text, ids in zip(PROMPTS, prompts):
        rendered = post("/apply-template", messages=[{"role": "user", "content": text}])["prompt"]
        own = post("/tokenize", content=rendered, add_special=True, parse_special=True)["tokens"]
        said = post("/completion", prompt=ids, n_predict=tokens, temperature=0, n_probs=20, cache_prompt=False)
        steps = said["completion_probabilities"]
        answers.append(dict(
            prompt_ids=own, answer=said["content"], ids=[step["id"] for step in steps],
            logprobs=[step["logprob"] for step in steps],
            top=[{other["id"]: other["logprob"] for other in step["top_logprobs"]} for step in steps]))
    return answers


def llama_cpp(file, plain_cache, prompts, args):
    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        return process.submit(by_llama_cpp, file, plain_cache, prompts, args.tokens, args.threads).result()


def compare(ours, theirs):
    equal, prefixes, gaps, worst = 0, [], [], 0.0
    for one, other in zip(ours, theirs):
        pairs = list(zip(one["ids"], other["ids"]))
        prefix = next((at for at, (a, b) in enumerate(pairs) if a != b), len(pairs))
        prefixes.append(prefix)
        for at in range(prefix):
            worst = max(worst, abs(one["logprobs"][at] - other["logprobs"][at]))
        if prefix == max(len(one["ids"]), len(other["ids"])):
            equal += 1
        else:
            top = other["top"][prefix]
            wanted = one["ids"][prefix]
            gaps.append(round(other["logprobs"][prefix] - top[wanted], 4) if wanted in top else None)
    return dict(equal=equal, prefix_mean=round(sum(prefixes) / len(prefixes), 1), logprob_diff=worst, gaps=gaps)


def equal_tensors(file, folder):
    """Of a Llama: how many tensors of the folder have the bits of the file's, dequantised by the package gguf; and of how many."""
    import gguf, numpy
    from safetensors.numpy import load_file

    config, ours = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    whole = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
    parts = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
             "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
             "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    equal, tensors = 0, gguf.GGUFReader(file).tensors
    for tensor in tensors:
        *block, kind, _ = tensor.name.split(".")
        name = f"model.layers.{block[1]}.{parts[kind]}" if block else whole[kind]
        theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        if kind in heads:  # ggml turns neighbours of a head together, Hugging Face's layout the two halves
            theirs = theirs.reshape(heads[kind], -1, 2, theirs.shape[-1]).swapaxes(1, 2).reshape(theirs.shape)
        equal += numpy.array_equal(ours[f"{name}.weight"].view(numpy.uint32), theirs.view(numpy.uint32))
    return equal, len(tensors)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=pathlib.Path)
    parser.add_argument("--sixfold", default="target/release/sixfold")
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--keep", type=pathlib.Path, help="where the folder and the f32 file are made, or were before")
    parser.add_argument("--details", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = args.keep or pathlib.Path(temporary)
        folder, plain = place / "model", place / "f32.gguf"
        model = [args.sixfold, "model"]
        if not folder.exists():
            subprocess.run(model + ["import", str(args.gguf), "--to", str(folder)], check=True, stdout=sys.stderr)
        if not plain.exists():
            export = ["export", str(folder), "--format", "gguf", "--dtype", "f32", "--to", str(plain)]
            subprocess.run(model + export, check=True, stdout=sys.stderr)
        sixfold = by_sixfold(args, folder)
        prompts = [answer["prompt_ids"] for answer in sixfold]
        of_file = llama_cpp(args.gguf, False, prompts, args)
        of_f32 = llama_cpp(plain, True, prompts, args)
        tensors_equal, tensors = equal_tensors(args.gguf, folder)
    if args.details:
        for prompt, *answers in zip(PROMPTS, sixfold, of_file, of_f32):
            print(f"\n{prompt}")
            for name, answer in zip(["sixfold", "file", "f32"], answers):
                print(f"  {name:8} {answer['ids']} {answer['answer']!r}")
    print(json.dumps({
        "model": args.gguf.name, "prompts": len(PROMPTS), "tokens": args.tokens, "threads": args.threads,
        "tensors": tensors, "tensors_equal": tensors_equal,
        "prompts_rendered_alike": sum(a["prompt_ids"] == b["prompt_ids"] for a, b in zip(sixfold, of_file)),
        "sixfold_and_file": compare(sixfold, of_file),
        "sixfold_and_f32": compare(sixfold, of_f32),
        "f32_and_file": compare(of_f32, of_file),
    }))


if __name__ == "__main__":
    main()
