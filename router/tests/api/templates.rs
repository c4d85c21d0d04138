//! A template that uses much of what published templates use, against what transformers 5.23 makes of it.
//!
//! `templates/features.txt` is the output of `render_jinja_template` for `features.jinja` and `features.json`.

use std::fs;

use lorikeet_router::chat::ChatTemplate;
use serde_json::json;

#[test]
fn templates_render_as_in_transformers() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("chat_template.jinja"), include_str!("templates/features.jinja"))
        .unwrap();
    fs::write(directory.path().join("tokenizer_config.json"), r#"{"bos_token": "<s>", "eos_token": "</s>"}"#)
        .unwrap();
    let template = ChatTemplate::load(directory.path(), std::iter::empty()).unwrap().unwrap();
    let messages = serde_json::from_str(include_str!("templates/features.json")).unwrap();
    let parameters = json!({"type": "object", "properties": {}});
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": parameters}}]);
    let rendered = template.render(messages, Some(&tools), true).unwrap().concat();
    assert_eq!(rendered, include_str!("templates/features.txt"));
}
