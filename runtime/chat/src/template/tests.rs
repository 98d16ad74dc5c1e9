//! Tests of `template`.

use super::*;

fn template(source: &str) -> Result<ChatTemplate, TemplateError> {
    let tokens = BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]);
    ChatTemplate::new(source, tokens, "2024-07-06".parse().unwrap())
}

fn render(source: &str, content: &str) -> Result<String, TemplateError> {
    template(source)?.render(&[Message { role: "user".to_owned(), content: content.to_owned() }], false)
}

#[test]
fn python_s_methods_are_there() {
    for (expression, expected) in [
        ("c.strip()", "a b,c b,c"),
        ("c.lstrip(' a')", "b,c b,c "),
        ("c.rstrip('c ')", " a b,c b,"),
        ("c.split(',')[-1]", "c "),
        ("c.split()", "['a', 'b,c', 'b,c']"),
        ("c.strip().split(' ', 1)[1]", "b,c b,c"),
        ("c.rsplit('b', 1)[0]", " a b,c "),
        ("c.replace('b,c', 'x', 1)", " a x b,c "),
        ("c.replace('b,c', 'x')", " a x x "),
        ("c.startswith(' a') and not c.endswith('b')", "True"),
        ("c.strip().removeprefix('a ').removesuffix(',c')", "b,c b"),
        ("'heLLo wORLD'.title() + 'aB'.upper() + 'aB'.lower() + 'aBC'.capitalize()", "Hello WorldABabAbc"),
        ("c.find('b') ~ c.count('b') ~ c.find('z')", "32-1"),
        ("{'a': 1, 'b': 2}.items() | tojson", "[[\"a\", 1], [\"b\", 2]]"),
        ("{'a': 1}.get('b', 3) ~ {'a': 1}.get('a')", "31"),
        ("{'k': [1, 'é<']} | tojson", "{\"k\": [1, \"é<\"]}"),
        ("strftime_now('%d %B %Y')", "06 July 2024"),
        ("bos_token ~ eos_token", "<s>"),
    ] {
        let source = format!("{{% set c = messages[0].content %}}{{{{ {expression} }}}}");
        assert_eq!(render(&source, " a b,c b,c ").unwrap(), expected, "{expression}");
    }
}

#[test]
fn what_a_template_refuses_is_told() {
    let refused = |source| render(source, "x").unwrap_err().to_string();
    assert_eq!(refused("{{ raise_exception('only in turns') }}"), "chat template: only in turns");
    assert!(refused("{{ messages[0].content.encode() }}").contains("no method `encode`"));
    assert!(refused("{% for %}").contains("chat template: "));
    assert!(template(&"x".repeat(TEMPLATE_BYTES_MAX + 1)).is_err());
}

#[test]
fn marks_of_generation_blocks_are_not_in_the_text() {
    let source = "{%- for m in messages -%}\n{%- generation -%}\n{{ m.content }}!\n{%- endgeneration %}\n.{% endfor %}";
    assert_eq!(render(source, "x").unwrap(), "x!.");
    let marked = template(source).unwrap().render_marked(&[], true).unwrap();
    assert_eq!(marked, "");
}
