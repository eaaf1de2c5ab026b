//! A search engine: an index of documents in memory, and queries (tantivy).

use crate::random::{Random, mix};
use tantivy::collector::{Count, TopDocs};
use tantivy::indexer::SingleSegmentIndexWriter;
use tantivy::query::QueryParser;
use tantivy::schema::{STORED, Schema, TEXT, Value as _};
use tantivy::{Index, TantivyDocument, doc};

pub fn run(documents: usize) -> u64 {
    let mut schema = Schema::builder();
    let title = schema.add_text_field("title", TEXT | STORED);
    let body = schema.add_text_field("body", TEXT);
    let index = Index::create_in_ram(schema.build());
    let mut random = Random(0x5ea7c4);
    // This writer works on the calling thread.
    let mut writer: SingleSegmentIndexWriter<TantivyDocument> =
        SingleSegmentIndexWriter::new(index, 50 << 20).unwrap();
    for _ in 0..documents {
        writer
            .add_document(doc!(title => random.text(4), body => random.text(60)))
            .unwrap();
    }
    let index = writer.finalize().unwrap();
    let searcher = index.reader().unwrap().searcher();
    let parser = QueryParser::for_index(&index, vec![title, body]);
    let mut sum = 0;
    for _ in 0..documents / 4 {
        let query = parser
            .parse_query(&format!("{} +{}", random.word(), random.word()))
            .unwrap();
        let collector = (TopDocs::with_limit(10).order_by_score(), Count);
        let (top, count) = searcher.search(&query, &collector).unwrap();
        sum = mix(sum, count as u64);
        for (_, address) in top {
            let found: TantivyDocument = searcher.doc(address).unwrap();
            let text = found.get_first(title).and_then(|value| value.as_str());
            sum = mix(sum, text.unwrap().len() as u64);
        }
    }
    sum
}
