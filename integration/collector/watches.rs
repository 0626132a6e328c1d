//! What changes while a collector runs.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::server::{Fault, WatchFault, path};
use super::world::{Objects, World, pod, policy};

/// How long a change may take to reach the snapshot: what is promised, with this machine's other work in it.
const SOON: Duration = Duration::from_secs(1);

fn label<'o>(objects: &'o Objects, pod: &str, key: &str) -> &'o Value {
    objects.get(&format!("Pod shop/{pod}")).map_or(&Value::Null, |pod| &pod["metadata"]["labels"][key])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_label_a_new_pod_and_a_policy_reach_the_snapshot_within_a_second() {
    let mut world = World::inhabited();
    world.start_plainly().await;
    world.ready().await;
    let mut took = Vec::new();
    for number in 0..20 {
        let text = number.to_string();
        world.server.put("pods", &pod("web-0", json!({"app": "web", "number": text})));
        took.push(world.until("the new label", |objects| *label(objects, "web-0", "number") == *text).await);
    }
    took.sort_unstable();
    assert!(took[19] < SOON, "{took:?}");
    eprintln!("a label change reaches the snapshot: median {:?}, most {:?}", took[10], took[19]);
    world.server.put("ciliumnetworkpolicies", &policy("second", "b.example.com"));
    let new = world.until("the policy", |objects| objects.contains_key("CiliumNetworkPolicy shop/second")).await;
    world.server.delete("pods", "shop/db-0");
    let gone = world.until("the end of a pod", |objects| !objects.contains_key("Pod shop/db-0")).await;
    assert!(new < SOON && gone < SOON, "{new:?} {gone:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_that_never_pause_are_seen_all_the_same_and_not_each_is_a_generation() {
    let mut world = World::inhabited();
    world.start_plainly().await;
    world.ready().await;
    let start = Instant::now();
    let mut latest = Duration::ZERO;
    let mut number = 0;
    while start.elapsed() < Duration::from_secs(2) {
        number += 1;
        let text = number.to_string();
        world.server.put("pods", &pod("web-0", json!({"app": "web", "number": text})));
        if number % 50 == 0 {
            latest = latest.max(
                world
                    .until("a label as new", |objects| {
                        label(objects, "web-0", "number").as_str().and_then(|seen| seen.parse::<u32>().ok())
                            >= Some(number)
                    })
                    .await,
            );
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(number > 100 && latest < SOON, "{number} changes, {latest:?}");
    let generations = world.metric("namegate_collect_generations_total");
    assert!((4.0..20.0).contains(&generations), "{generations} in 2 s");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_goes_on_from_the_last_bookmark() {
    let mut world = World::inhabited();
    let mut settings = world.settings();
    settings.timing.watch = Duration::from_secs(1);
    world.start(settings, Box::new(|_| Ok(()))).await;
    world.ready().await;
    // Nothing happens to services, but the server's version moves on.
    let version = world.server.put("pods", &pod("web-9", json!({"app": "web"})));
    let from_there = format!("resourceVersion={version}");
    let asked = || world.server.asked(&["/api/v1/services?", "watch=true", &from_there]);
    world.wait("a watch from the bookmark on", || !asked().is_empty()).await;
    assert!(asked()[0].contains("allowWatchBookmarks=true"));
    assert_eq!(world.metric(r#"namegate_collect_relists_total{kind="services"}"#), 0.0);
    assert_eq!(world.server.asked(&["GET /api/v1/services?limit="]).len(), 1, "listed once");
}

/// Ends all watches, changes every pod and the policy behind the server's back, so to say, and lets the collector find out.
async fn relists(by_status: bool) {
    let mut world = World::inhabited();
    let all = |generation: u32| -> Vec<Value> {
        let labels = json!({"app": "web", "generation": generation.to_string()});
        // Each generation has other pods too: half of one and half of the other would be told by their number.
        (generation..generation + 300).map(|number| pod(&format!("web-{number:03}"), labels.clone())).collect()
    };
    world.server.delete("pods", "shop/web-0");
    world.server.delete("pods", "shop/db-0");
    world.server.put_all("pods", &all(0));
    world.server.page(40);
    let rule = |objects: &Objects| {
        let pods: Vec<&Value> = objects.iter().filter(|(key, _)| key.starts_with("Pod ")).map(|(_, pod)| pod).collect();
        let first = &pods.first().ok_or("no pods")?["metadata"]["labels"]["generation"];
        let others = pods.iter().filter(|pod| pod["metadata"]["labels"]["generation"] != *first).count();
        match (pods.len(), others) {
            (300, 0) => Ok(()),
            (all, others) => Err(format!("{all} pods, {others} of another generation")),
        }
    };
    world.start(world.settings(), Box::new(rule)).await;
    world.ready().await;
    for generation in 1..4 {
        // The list is slow, so that half of it would be seen.
        world.server.always(path("pods"), Some(Fault::Status(503, "ServiceUnavailable")));
        world.server.cut();
        world.server.put_all("pods", &all(generation));
        world.server.delete("pods", &format!("shop/web-{:03}", generation - 1));
        world.server.compact(by_status);
        let lists = (0..8).flat_map(|_| [Fault::Slow]);
        world.server.next(path("pods"), lists);
        world.server.always(path("pods"), None);
        let wanted = generation.to_string();
        let new = format!("web-{:03}", generation + 100);
        world.until("the next generation", |objects| *label(objects, &new, "generation") == *wanted).await;
    }
    let relists = world.metric(r#"namegate_collect_relists_total{kind="pods"}"#);
    assert!(relists >= 3.0, "{relists}: {:#?}", world.server.asked(&["pods"]));
    assert!(world.metric(r#"namegate_collect_errors_total{kind="pods",reason="gone"}"#) >= 3.0);
    assert!(world.seen() >= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_before_a_410_event_is_found_by_a_list_and_never_half_of_it() {
    relists(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_before_a_410_status_is_found_by_a_list_and_never_half_of_it() {
    relists(true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_makes_no_sense_is_not_passed_over() {
    let lines = [
        "nonsense",
        "{}",
        r#"{"type":"MODIFIED"}"#,
        r#"{"type":"MODIFIED","object":{"kind":"CiliumNetworkPolicy","metadata":{"name":"web"}}}"#,
        r#"{"type":"MODIFIED","object":{"kind":"Pod","metadata":{"name":"web","namespace":"shop","resourceVersion":"9"}}}"#,
        r#"{"type":"SURPRISE","object":{}}"#,
        r#"{"type":"ERROR","object":{"kind":"Status","code":500,"message":"etcd"}}"#,
        r#"{"type":"BOOKMARK","object":{"metadata":{}}}"#,
    ];
    let mut world = World::inhabited();
    world.start_plainly().await;
    world.ready().await;
    for (number, line) in lines.into_iter().enumerate() {
        let name = format!("p-{number}");
        world.server.in_watch("ciliumnetworkpolicies", [WatchFault::Line(line)]);
        // In place of this policy's event comes nonsense, and the next one's event would hide that.
        world.server.put_all(
            "ciliumnetworkpolicies",
            &[policy(&name, "a.example.com"), policy("after", &format!("{name}.example.com"))],
        );
        let key = format!("CiliumNetworkPolicy shop/{name}");
        world.until("the policy whose event was nonsense", |objects| objects.contains_key(&key)).await;
    }
    let errors = |reason: &str| {
        world.metric(&format!(r#"namegate_collect_errors_total{{kind="ciliumnetworkpolicies",reason="{reason}"}}"#))
    };
    assert_eq!((errors("garbage"), errors("server")), (7.0, 1.0));
    // The watch was taken up again where it was, without a list.
    assert_eq!(world.metric(r#"namegate_collect_relists_total{kind="ciliumnetworkpolicies"}"#), 0.0);
    // What the server can't get past is found by a list.
    world.server.in_watch(
        "ciliumnetworkpolicies",
        [WatchFault::Line("x"), WatchFault::Line("x"), WatchFault::Line("x"), WatchFault::Line("x")],
    );
    world.server.put("ciliumnetworkpolicies", &policy("last", "a.example.com"));
    world.until("the policy that can't be told", |objects| objects.contains_key("CiliumNetworkPolicy shop/last")).await;
    assert_eq!(world.metric(r#"namegate_collect_relists_total{kind="ciliumnetworkpolicies"}"#), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_in_the_middle_of_an_object_loses_nothing() {
    let mut world = World::inhabited();
    world.start_plainly().await;
    world.ready().await;
    for number in 0..10 {
        let fault = if number % 2 == 0 { WatchFault::Half } else { WatchFault::End };
        world.server.in_watch("pods", [fault]);
        let text = number.to_string();
        world.server.put("pods", &pod("web-0", json!({"app": "web", "number": text})));
        let took = world.until("the label", |objects| *label(objects, "web-0", "number") == *text).await;
        assert!(took < SOON, "{took:?}");
    }
    world.server.cut();
    world.server.delete("pods", "shop/db-0");
    world.until("what happened after the cut", |objects| !objects.contains_key("Pod shop/db-0")).await;
    assert_eq!(world.metric(r#"namegate_collect_relists_total{kind="pods"}"#), 0.0);
}
