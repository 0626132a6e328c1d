//! Questions about policy, a line of JSON each: what is one goes to the admin socket and back as it was, and has one
//! answer, which is the same when it is asked again, in one line, and is read as it was written.

use std::cell::OnceCell;

use namegate::cluster::files::File;
use namegate::cluster::snapshot::{LastGood, OnInvalid, assemble};
use namegate::config::Config;
use namegate::engine::explain::answer::Answer;
use namegate::engine::explain::question::{Asked, Asker, pod};
use namegate::engine::explain::stand_in::StandIns;
use namegate::engine::explain::{Explainer, Surroundings};
use namegate::engine::world::World;
use namegate::operate::explain::PolicyAsked;
use namegate::run::surroundings;

use super::cost::{self, Limit};

/// Questions are answered up to this many.
const LINES: usize = 16;
/// A question's parts, each once; its mark is JSON of any kind.
const READ: Limit = Limit { held: (40, 2_048), allocations: (2, 64) };
/// What is asked comes back in it, also for each resolver and address.
const ANSWERED: Limit = Limit { held: (200, 100_000), allocations: (4, 4_000) };

/// The demo's cluster.
const CLUSTER: [(&str, &str); 4] = [
    ("cluster.yaml", include_str!("../../../config/demo/cluster.yaml")),
    ("kube-dns.yaml", include_str!("../../../config/demo/kube-dns.yaml")),
    ("payment-processor.yaml", include_str!("../../../config/demo/payment-processor.yaml")),
    ("reports.yaml", include_str!("../../../config/demo/reports.yaml")),
];

pub fn check(octets: &[u8]) {
    for line in octets.split(|octet| *octet == b'\n').take(LINES) {
        let Ok(asked) = cost::within(line.len(), READ, || serde_json::from_slice::<Asked>(line)) else { continue };
        let page = PolicyAsked::Explain(Box::new(asked.clone())).to_page();
        assert!(page.bytes().all(|octet| octet.is_ascii_graphic()), "{page:?} is no page");
        let (path, query) = page.split_once('?').expect("a question");
        assert_eq!(PolicyAsked::from_page(path, query), Some(Ok(PolicyAsked::Explain(Box::new(asked.clone())))));

        explained(&asked).ok(); // what is made once is made now
        let answer = cost::within(line.len(), ANSWERED, || explained(&asked));
        assert_eq!(answer, explained(&asked));
        let Ok(answer) = answer else { continue };
        let text = serde_json::to_string(&answer).expect("an answer can be written");
        assert!(!text.contains('\n'));
        assert_eq!(serde_json::from_str::<Answer>(&text).expect("an answer can be read"), answer);
        let asked = answer.queries.is_empty() || answer.queries.iter().any(|query| query.allowed);
        let reached = !answer.connections.is_empty() && answer.connections.iter().all(|one| one.allowed);
        assert_eq!(answer.allowed, asked && reached, "{answer:?}");
    }
}

/// The answer that the demo's cluster gives.
pub(super) fn explained(asked: &Asked) -> Result<Answer, String> {
    thread_local! {
        static DEMO: OnceCell<(World, Surroundings)> = const { OnceCell::new() };
    }
    DEMO.with(|demo| {
        let (world, around) = demo.get_or_init(|| {
            let files = CLUSTER.map(|(name, text)| File { name: name.to_owned(), content: Ok(text.into()) });
            let mut world = assemble(&files, &LastGood::default(), OnInvalid::Refuse).world;
            StandIns::default().place(&mut world);
            let around = surroundings(&Config::default(), &world, Vec::new());
            (world, around)
        });
        let mut world = world.clone();
        let from = match &asked.from {
            Asker::Pod(text) => pod(text)?,
            Asker::Like(like) => StandIns::beside(&world).pod(&mut world, like, &[]),
        };
        let mut answer = Explainer::new(&world, around.clone()).explain(&asked.typed(from)?)?;
        answer.id.clone_from(&asked.id);
        Ok(answer)
    })
}
