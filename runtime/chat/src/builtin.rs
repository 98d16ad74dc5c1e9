//! Templates by name, for models that bring none: [`Builtin`].

/// A template that is known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Builtin {
    /// `<|im_start|>role`, a new line, the text, `<|im_end|>`: Qwen's and SmolLM2's.
    ChatMl,
    /// Headers and `<|eot_id|>`: Llama 3's, without its own system prompt.
    Llama3,
    /// `[INST]` around questions, the end-of-sequence token after answers: Mistral 7B's.
    Mistral,
    /// A special token a turn, the text, a new line: that of the tokenizers that Sixfold trains.
    Turns,
}

const CHATML: &str = "\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}";

const LLAMA_3: &str = "\
{{- bos_token -}}
{%- for message in messages -%}
{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{{- message['content'] | trim }}{{ '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif -%}";

const MISTRAL: &str = "\
{%- if messages[0]['role'] == 'system' -%}
{%- set system = messages[0]['content'] + '\\n\\n' -%}{%- set turns = messages[1:] -%}
{%- else -%}
{%- set system = '' -%}{%- set turns = messages -%}
{%- endif -%}
{{- bos_token -}}
{%- for message in turns -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
{{- raise_exception('questions and answers must take turns') -}}
{%- endif -%}
{%- if message['role'] == 'user' -%}
{{ '[INST] ' + (system if loop.first else '') + message['content'] + ' [/INST]' }}
{%- else -%}
{{ ' ' + message['content'] + eos_token }}
{%- endif -%}
{%- endfor -%}";

const TURNS: &str = "\
{%- if bos_token %}{{ bos_token }}{% endif -%}
{%- for message in messages %}<|{{ message.role }}|>\n{{ message.content }}\n{% endfor -%}
{%- if add_generation_prompt %}<|assistant|>\n{% endif -%}";

impl Builtin {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::ChatMl, Self::Llama3, Self::Mistral, Self::Turns];

    /// Its name in options.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ChatMl => "chatml",
            Self::Llama3 => "llama3",
            Self::Mistral => "mistral",
            Self::Turns => "turns",
        }
    }

    /// The template.
    pub const fn source(self) -> &'static str {
        match self {
            Self::ChatMl => CHATML,
            Self::Llama3 => LLAMA_3,
            Self::Mistral => MISTRAL,
            Self::Turns => TURNS,
        }
    }

    /// The one of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|builtin| builtin.name() == name)
    }
}
