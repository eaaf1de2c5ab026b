//! A site generator: pages in Markdown through templates to HTML
//! (pulldown-cmark, minijinja).

use crate::random::{Random, checksum};
use minijinja::{Environment, context};
use pulldown_cmark::{Parser, html};

const PAGE: &str = r#"<html><head><title>{{ title|upper }}</title></head><body>
<ul>{% for page in pages %}<li class="{{ loop.cycle('odd', 'even') }}"><a href="{{ page.link }}">{{ page.title|title }}</a></li>
{% endfor %}</ul>
{% for tag in tags|sort %}<b>{{ tag }}</b>{% endfor %}
{{ body|safe }}
</body></html>"#;

struct Page {
    title: String,
    tags: Vec<String>,
    text: String,
}

fn page(random: &mut Random) -> Page {
    let title = random.text(3);
    let mut text = format!("# {title}\n\n");
    for _ in 0..12 {
        text.push_str(&format!(
            "## {}\n\n{} *{}* ",
            random.word(),
            random.text(30),
            random.word()
        ));
        text.push_str(&format!(
            "[{}](/{}) `{}`\n\n",
            random.word(),
            random.word(),
            random.word()
        ));
        for _ in 0..5 {
            text.push_str(&format!("- **{}** {}\n", random.word(), random.text(6)));
        }
        text.push('\n');
    }
    let tags = (0..6).map(|_| random.word()).collect();
    Page { title, tags, text }
}

pub fn run(times: usize) -> u64 {
    let mut random = Random(0x517E);
    let pages: Vec<Page> = (0..60).map(|_| page(&mut random)).collect();
    let mut sum = 0;
    for _ in 0..times {
        let mut templates = Environment::new();
        templates.add_template("page", PAGE).unwrap();
        let template = templates.get_template("page").unwrap();
        for page in &pages {
            let mut body = String::new();
            html::push_html(&mut body, Parser::new(&page.text));
            let links: Vec<_> = pages
                .iter()
                .take(30)
                .map(|page| context! { link => page.title.replace(' ', "-"), title => page.title })
                .collect();
            let whole = template
                .render(context! { title => page.title, tags => page.tags, pages => links, body })
                .unwrap();
            sum = checksum(sum, whole.as_bytes());
        }
    }
    sum
}
