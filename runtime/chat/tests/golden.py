"""Writes golden.json: what `transformers` makes of conversations by templates of the usual kinds.

    python golden.py        # transformers 5.24, Jinja2 3.1
"""

import json
from pathlib import Path

from transformers.utils.chat_template_utils import render_jinja_template

TURNS = "{%- if bos_token %}{{ bos_token }}{% endif -%}\n{%- for message in messages %}<|{{ message.role }}|>\n{{ message.content }}\n{% endfor -%}\n{%- if add_generation_prompt %}<|assistant|>\n{% endif -%}"

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)

LLAMA3 = """{% set loop_messages = messages %}{% for message in loop_messages %}
{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}
{% if loop.index0 == 0 %}
{% set content = bos_token + content %}
{% endif %}
{{- content -}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
"""

LLAMA3_DATED = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {{- message.content | tojson }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

THINKING = """{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" %}
        {%- set ns.last_query_index = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if message.role == "assistant" %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<think>\\n\\n</think>\\n\\n' }}
        {%- endif %}
        {{- content.strip() + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

MISTRAL = (
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}"
    "{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{{ bos_token }}"
    "{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
    "{% if loop.index0 == 0 and system_message != false %}{% set content = system_message + '\\n\\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ '[INST] ' + content + ' [/INST]' }}"
    "{% elif message['role'] == 'assistant' %}{{ ' ' + content + eos_token }}{% endif %}{% endfor %}"
)

GENERATION = """{% for message in messages %}
    {% if message['role'] == 'assistant' %}
<|im_start|>assistant
{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}

    {%- else %}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
    {%- endif %}

{% endfor %}
{%- if add_generation_prompt %}
<|im_start|>assistant
{% endif %}
"""

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
TEMPLATES = {
    "turns": (TURNS, {}),
    "chatml": (CHATML, {}),
    "llama3": (LLAMA3, {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}),
    "llama3-dated": (LLAMA3_DATED, {"bos_token": "<|begin_of_text|>"}),
    "qwen2.5": (QWEN, {"eos_token": "<|im_end|>"}),
    "thinking": (THINKING, {}),
    "mistral": (MISTRAL, TOKENS),
    "generation": (GENERATION, {}),
}


def turns(*contents, system=None):
    roles = ["user", "assistant"]
    messages = [{"role": roles[at % 2], "content": content} for at, content in enumerate(contents)]
    return ([{"role": "system", "content": system}] if system else []) + messages


DIALOGUES = [
    turns("What is the capital of France?", "Paris."),
    turns("发烧了怎么办？", "多喝水，注意休息。\n如果超过三天，请就医。", system="你是一位医生。"),
    turns("Hi", "Hello! ", "Name two colours & one <tag>.", "Red, \"green\".\n<b>x</b>", "谢谢", "不客气。"),
    turns("  blanks around  ", "\n kept or not \n", system=" Be brief. "),
    turns("{{ 1 + 1 }} {% if x %}", "It's a template: {{ y }}"),
    turns("Think.", "<think>\nlong\n</think>\n\nDone.", "Again.", "Yes."),
    [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "So?"}],
]


def main():
    goldens = []
    for name, (template, tokens) in TEMPLATES.items():
        cases = []
        for messages in DIALOGUES:
            for prompt in (False, True):
                case = {"messages": messages, "add_generation_prompt": prompt}
                try:
                    texts, ranges = render_jinja_template(
                        [messages],
                        chat_template=template.replace('strftime_now("%d %b %Y")', '"06 Jul 2024"'),
                        add_generation_prompt=prompt,
                        return_assistant_tokens_mask=name == "generation",
                        **tokens,
                    )
                    case["text"] = texts[0]
                    if name == "generation":
                        case["generated"] = [list(pair) for pair in ranges[0]]
                except Exception as error:
                    case["error"] = str(error)
                cases.append(case)
        goldens.append({"name": name, "template": template, "tokens": tokens, "cases": cases})
    path = Path(__file__).with_name("golden.json")
    path.write_text(json.dumps(goldens, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
