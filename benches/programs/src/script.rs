//! A script engine at work: arrays, maps, texts and closures (rhai).

use crate::random::mix;
use rhai::{Engine, Scope};

const SCRIPT: &str = r#"
    fn sieve(n) {
        let composite = [];
        for i in 0..n { composite.push(false); }
        let count = 0;
        for i in 2..n {
            if composite[i] { continue; }
            count += 1;
            let multiple = i * i;
            while multiple < n { composite[multiple] = true; multiple += i; }
        }
        count
    }
    fn words(n) {
        let text = "";
        let random = n;
        for i in 0..n { random = (random * 75 + 74) % 65537; text += random + ","; }
        let sum = 0;
        for word in text.split(",") {
            if word != "" { sum = (sum * 31 + parse_int(word)) % 1000003; }
        }
        sum
    }
    fn table(n) {
        let people = [];
        for i in 0..n {
            people.push(#{ name: "person " + (i * 7919 % n), age: i % 90, tags: [i, `tag ${i % 13}`] });
        }
        let old = people.filter(|p| p.age > 60).map(|p| p.name + "/" + p.tags[1]);
        old.sort();
        let sum = 0;
        for name in old { sum = (sum * 31 + name.len) % 1000003; }
        sum
    }
    sieve(20000) + words(6000) + table(6000)
"#;

pub fn run(times: usize) -> u64 {
    let mut sum = 0;
    for _ in 0..times {
        // As for a request: an engine and a script of its own.
        let engine = Engine::new();
        let script = engine.compile(SCRIPT).unwrap();
        let result: i64 = engine
            .eval_ast_with_scope(&mut Scope::new(), &script)
            .unwrap();
        sum = mix(sum, result as u64);
    }
    sum
}
