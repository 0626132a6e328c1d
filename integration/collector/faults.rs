//! A server that refuses, lacks, stalls or breaks.

use std::time::{Duration, Instant};

use serde_json::json;

use super::server::{Fault, path};
use super::world::{World, object, pod, policy};

const POLICIES: &str = "ciliumnetworkpolicies";

#[tokio::test(flavor = "multi_thread")]
async fn what_the_role_does_not_allow_is_named_and_nothing_is_written_without_it() {
    let mut world = World::inhabited();
    world.server.always(path(POLICIES), Some(Fault::Status(403, "Forbidden")));
    world.start_plainly().await;
    let counted = || world.metric(r#"namegate_collect_errors_total{kind="ciliumnetworkpolicies",reason="forbidden"}"#);
    world.wait("refusals", || counted() >= 3.0).await;
    assert_eq!(world.objects(), None);
    let reasons = world.collector().reasons();
    assert_eq!(
        reasons[0],
        "ciliumnetworkpolicies: 403 Forbidden: scripted: Forbidden; the role needs the verbs list and watch for it"
    );
    world.server.always(path(POLICIES), None);
    world.ready().await;
    assert_eq!(world.objects().expect("a snapshot").len(), 11);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_is_forbidden_later_stays_as_it_was_and_others_go_on() {
    let mut world = World::inhabited();
    world.start_plainly().await;
    world.ready().await;
    world.server.always(path(POLICIES), Some(Fault::Status(403, "Forbidden")));
    world.server.cut();
    world.server.put(POLICIES, &policy("new", "b.example.com"));
    world.server.put("pods", &pod("web-1", json!({"app": "web"})));
    let objects = |name: &str| world.objects().expect("a snapshot").contains_key(name);
    world.wait("the pod", || objects("Pod shop/web-1")).await;
    world
        .wait("a reason", || {
            world.collector().reasons().iter().any(|reason| reason.starts_with("ciliumnetworkpolicies: 403"))
        })
        .await;
    assert!(objects("CiliumNetworkPolicy shop/web") && !objects("CiliumNetworkPolicy shop/new"));
    // Also when everything has to be listed anew.
    world.server.compact(false);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(objects("CiliumNetworkPolicy shop/web"));
    world.server.always(path(POLICIES), None);
    world.ready().await;
    world.wait("the policy", || objects("CiliumNetworkPolicy shop/new")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_without_ciliums_resources_is_fine_and_they_are_found_when_they_come() {
    let mut world = World::inhabited();
    let custom = [POLICIES, "ciliumclusterwidenetworkpolicies", "ciliumcidrgroups"];
    for plural in custom {
        world.server.always(path(plural), Some(Fault::Status(404, "NotFound")));
    }
    world.start_plainly().await;
    world.ready().await;
    assert_eq!(world.objects().expect("a snapshot").len(), 8);
    world.wait("some more questions", || world.server.asked(&["/ciliumnetworkpolicies?"]).len() > 4).await;
    assert_eq!(world.metric(r#"namegate_collect_relists_total{kind="ciliumnetworkpolicies"}"#), 0.0);
    assert_eq!(world.metric(r#"namegate_collect_errors_total{kind="ciliumnetworkpolicies",reason="absent"}"#), 0.0);
    for plural in custom {
        world.server.always(path(plural), None);
    }
    let took = world.until("policies", |objects| objects.len() == 11).await;
    assert!(took < Duration::from_secs(1), "asked for every 100 ms: {took:?}");
    // The server that knows blocks of addresses in their old version only.
    assert!(!world.server.asked(&["/apis/cilium.io/v2alpha1/ciliumcidrgroups?"]).is_empty());
}

/// Whoever wrote them expects them to hold: that they don't has to be seen.
#[tokio::test(flavor = "multi_thread")]
async fn policies_of_administrators_are_collected_for_the_agent_to_refuse() {
    let kinds = [
        ("adminnetworkpolicies", "AdminNetworkPolicy", "v1alpha1"),
        ("baselineadminnetworkpolicies", "BaselineAdminNetworkPolicy", "v1alpha1"),
        ("clusternetworkpolicies", "ClusterNetworkPolicy", "v1alpha2"),
    ];
    for (plural, kind, version) in kinds {
        let mut world = World::inhabited();
        for (other, ..) in kinds {
            world.server.always(path(other), Some(Fault::Status(404, "NotFound")));
        }
        world.start_plainly().await;
        world.ready().await;
        assert_eq!(world.agent().refusals, [], "a cluster without these kinds");
        let rest =
            json!({"apiVersion": format!("policy.networking.k8s.io/{version}"), "kind": kind, "spec": {"priority": 1}});
        world.server.put(plural, &object(None, "all", rest));
        world.server.always(path(plural), None);
        let key = format!("{kind} all");
        world.until(&key, |objects| objects.contains_key(&key)).await;
        let refusals = world.agent().refusals;
        let said = refusals.iter().map(|refusal| refusal.text.as_str()).collect::<Vec<_>>();
        assert!(said.len() == 1 && said[0].contains(&format!("{kind} is not read by namegate yet")), "{said:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_is_denied_for_a_moment_is_not_forgotten() {
    let mut world = World::inhabited();
    let rule = |objects: &super::world::Objects| match objects.contains_key("CiliumNetworkPolicy shop/web") {
        true => Ok(()),
        false => Err("the policy is gone".to_owned()),
    };
    let mut settings = world.settings();
    settings.timing.absent_grace = Duration::from_secs(3);
    world.start(settings.clone(), Box::new(rule)).await;
    world.ready().await;
    // A server that is starting says so for a moment.
    world.server.always(path(POLICIES), Some(Fault::Status(404, "NotFound")));
    world.server.put("pods", &pod("web-1", json!({"app": "web"})));
    world.until("the pod", |objects| objects.contains_key("Pod shop/web-1")).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    world.server.always(path(POLICIES), None);
    world.ready().await;
    // So it is when the collector starts: what an earlier one wrote stays until then.
    world.stop().await;
    world.server.always(path(POLICIES), Some(Fault::Status(404, "NotFound")));
    assert!(world.seen() >= 2);
    world.start(settings, Box::new(rule)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    let reasons = world.collector().reasons();
    assert!(reasons[0].starts_with("ciliumnetworkpolicies: 404"), "{reasons:?}");
    world.server.always(path(POLICIES), None);
    world.ready().await;
    world.seen();
    // What stays away is believed.
    world.server.always(path(POLICIES), Some(Fault::Status(404, "NotFound")));
    let took = world.until("its end", |objects| !objects.contains_key("CiliumNetworkPolicy shop/web")).await;
    assert!(took > Duration::from_secs(2), "{took:?}");
    world.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_asked_less_and_less_and_found_when_it_is_back() {
    let mut world = World::inhabited();
    let mut settings = world.settings();
    settings.timing.backoff_max = Duration::from_millis(400);
    world.start(settings, Box::new(|_| Ok(()))).await;
    world.ready().await;
    for (fault, reason) in [
        (Fault::Status(500, "InternalError"), "server"),
        (Fault::Status(503, "ServiceUnavailable"), "server"),
        (Fault::Status(429, "TooManyRequests"), "throttled"),
        (Fault::Status(401, "Unauthorized"), "unauthorized"),
        (Fault::Hangup, "unreachable"),
    ] {
        world.server.always(path("pods"), Some(fault.clone()));
        let asked = world.server.asked(&["/api/v1/pods?"]).len();
        let start = Instant::now();
        world.server.put("pods", &pod("web-0", json!({"app": "web", "fault": reason})));
        tokio::time::sleep(Duration::from_secs(2)).await;
        let most = 10 + start.elapsed().as_millis() as usize / 200;
        let asked = world.server.asked(&["/api/v1/pods?"]).len() - asked;
        assert!((3..most).contains(&asked), "{fault:?}: asked {asked} times in {:?}", start.elapsed());
        assert!(world.metric(&format!(r#"namegate_collect_errors_total{{kind="pods",reason="{reason}"}}"#)) >= 3.0);
        let reasons = world.collector().reasons();
        assert!(reasons.len() == 1 && reasons[0].starts_with("pods: "), "{fault:?}: {reasons:?}");
        world.server.always(path("pods"), None);
        let label =
            |objects: &super::world::Objects| objects["Pod shop/web-0"]["metadata"]["labels"]["fault"] == reason;
        let took = world.until("the label", label).await;
        assert!(took < Duration::from_secs(1), "{took:?}");
        world.ready().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_is_given_up() {
    let mut world = World::inhabited();
    // At the list: 2 s are allowed.
    world.server.always(path("pods"), Some(Fault::Stuck));
    world.start_plainly().await;
    let timed_out = || world.metric(r#"namegate_collect_errors_total{kind="pods",reason="timed_out"}"#);
    world.wait("the end of patience", || timed_out() >= 1.0).await;
    world.server.always(path("pods"), None);
    world.ready().await;
    // In a watch: the server does not end it when it should, and says nothing.
    world.server.stall("pods", true);
    world.server.put("pods", &pod("web-1", json!({"app": "web"})));
    let before = timed_out();
    world.wait("the end of the watch", || timed_out() > before).await;
    assert!(!world.objects().expect("a snapshot").contains_key("Pod shop/web-1"));
    world.server.stall("pods", false);
    world.until("what happened meanwhile", |objects| objects.contains_key("Pod shop/web-1")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_can_not_be_written_is_a_reason_and_is_written_later() {
    let mut world = World::inhabited();
    world.start_plainly().await;
    world.ready().await;
    // In the way, as a full disk would be; also root can't make files in what is a file.
    std::fs::remove_dir(world.root.join("..work")).expect("it is empty");
    std::fs::write(world.root.join("..work"), "").expect("written");
    world.server.put("pods", &pod("web-1", json!({"app": "web"})));
    world
        .wait("a reason", || {
            world.collector().reasons().iter().any(|reason| reason.starts_with("snapshot: can't be written"))
        })
        .await;
    assert_eq!(world.objects().expect("the last one stays").len(), 11);
    std::fs::remove_file(world.root.join("..work")).expect("removed");
    world.until("the pod", |objects| objects.contains_key("Pod shop/web-1")).await;
    world.ready().await;
    assert!(world.metric("namegate_collect_write_errors_total") >= 1.0);
}
