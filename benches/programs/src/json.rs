//! A data job: JSON records read into values, changed, sorted and written.

use crate::random::{Random, checksum};
use serde_json::{Map, Value, json};

fn records(count: usize) -> String {
    let mut random = Random(0x5eed);
    let records: Vec<Value> = (0..count)
        .map(|id| {
            let tags: Vec<String> = (0..random.below(8)).map(|_| random.word()).collect();
            json!({
                "id": id,
                "name": random.text(2),
                "note": random.text(12),
                "tags": tags,
                "place": { "x": random.below(1000), "y": random.below(1000), "street": random.word() },
                "score": random.below(10_000) as f64 / 8.0,
            })
        })
        .collect();
    Value::Array(records).to_string()
}

fn transform(record: Value) -> Option<Value> {
    let Value::Object(fields) = record else {
        return None;
    };
    let score = fields.get("score")?.as_f64()?;
    if score < 100.0 {
        return None;
    }
    let mut changed = Map::new();
    for (key, value) in fields {
        let value = match value {
            Value::String(text) => Value::String(text.to_uppercase()),
            Value::Array(tags) => Value::Array(tags.into_iter().rev().collect()),
            other => other,
        };
        changed.insert(format!("new_{key}"), value);
    }
    Some(Value::Object(changed))
}

pub fn run(times: usize) -> u64 {
    let text = records(12_000);
    let mut sum = 0;
    for _ in 0..times {
        let Ok(Value::Array(records)) = serde_json::from_str(&text) else {
            unreachable!("an array was written");
        };
        let mut changed: Vec<Value> = records.into_iter().filter_map(transform).collect();
        changed.sort_by(|a, b| a["new_name"].as_str().cmp(&b["new_name"].as_str()));
        sum = checksum(sum, Value::Array(changed).to_string().as_bytes());
    }
    sum
}
