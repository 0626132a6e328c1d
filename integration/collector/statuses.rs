//! What namegate makes of policies, written into them.

use std::time::Duration;

use serde_json::{Value, json};

use super::server::Fault;
use super::world::{World, object, policy};

const POLICIES: &str = "ciliumnetworkpolicies";

async fn writing(world: &mut World) {
    let mut settings = world.settings();
    settings.write_status = true;
    world.start(settings, Box::new(|_| Ok(()))).await;
    world.ready().await;
}

fn refused(name: &str) -> Value {
    let mut policy = policy(name, "a.example.com");
    policy["spec"]["egres"] = json!([]);
    policy
}

/// The condition as the server has it; null if there is none.
fn condition(world: &World, name: &str) -> Value {
    world.server.get(POLICIES, &format!("shop/{name}"))["status"]["conditions"][0].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_says_whether_it_is_refused_and_why_and_is_written_once() {
    let mut world = World::inhabited();
    world.server.put(POLICIES, &refused("wrong"));
    writing(&mut world).await;
    world.wait("conditions", || world.server.patches().len() == 3).await;
    let web = condition(&world, "web");
    assert_eq!(
        (&web["type"], &web["status"], &web["reason"]),
        (&json!("Valid"), &json!("True"), &json!("NamegateAccepted"))
    );
    let wrong = condition(&world, "wrong");
    assert_eq!((&wrong["status"], &wrong["reason"]), (&json!("False"), &json!("NamegateRefused")));
    // What `namegate check` says of it.
    let said = world.agent().refusals[0].text.clone();
    assert_eq!(wrong["message"].as_str(), Some(said.as_str()));
    assert!(said.contains("egres"), "{said}");
    let paths: Vec<String> = world.server.patches().into_iter().map(|(path, _)| path).collect();
    assert!(paths.contains(&"/apis/cilium.io/v2/ciliumclusterwidenetworkpolicies/all/status".to_owned()), "{paths:?}");
    assert!(paths.contains(&"/apis/cilium.io/v2/namespaces/shop/ciliumnetworkpolicies/wrong/status".to_owned()));
    // Its own writes come back as events, and change neither the snapshot nor the condition.
    let generations = world.metric("namegate_collect_generations_total");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(world.server.patches().len(), 3);
    assert_eq!(world.metric("namegate_collect_generations_total"), generations);
    // It is mended.
    let since = wrong["lastTransitionTime"].clone();
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let mut mended = policy("wrong", "a.example.com");
    mended["status"] = world.server.get(POLICIES, "shop/wrong")["status"].clone();
    world.server.put(POLICIES, &mended);
    world.wait("the condition", || condition(&world, "wrong")["status"] == "True").await;
    assert_ne!(condition(&world, "wrong")["lastTransitionTime"], since);
    world.wait("the count", || world.metric(r#"namegate_collect_status_writes_total{result="done"}"#) == 4.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_being_asked_to_nothing_is_written() {
    let mut world = World::inhabited();
    world.start_plainly().await;
    world.ready().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(world.server.asked(&["PATCH"]), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_real_cilium_says_is_left_alone() {
    let mut world = World::inhabited();
    let ciliums = json!({"type": "Valid", "status": "True", "message": "Policy validation succeeded"});
    let mut wrong = refused("wrong");
    wrong["status"] = json!({"conditions": [ciliums.clone()]});
    world.server.put(POLICIES, &wrong);
    writing(&mut world).await;
    world.wait("conditions", || world.server.patches().len() == 2).await;
    // It comes second, and puts its own in place of ours.
    let mut web = world.server.get(POLICIES, "shop/web");
    web["status"]["conditions"] = json!([ciliums.clone()]);
    world.server.put(POLICIES, &web);
    world
        .wait("a look at it", || world.metric(r#"namegate_collect_status_writes_total{result="left_alone"}"#) >= 2.0)
        .await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!((condition(&world, "wrong"), condition(&world, "web")), (ciliums.clone(), ciliums));
    assert_eq!(world.server.patches().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_say_beside_it_stays_and_a_policy_that_changed_meanwhile_is_looked_at_again() {
    let mut world = World::inhabited();
    let other = json!({"type": "Other", "status": "True"});
    let mut beside = refused("beside");
    beside["status"] = json!({"conditions": [other.clone()]});
    world.server.put(POLICIES, &beside);
    let path = "/apis/cilium.io/v2/namespaces/shop/ciliumnetworkpolicies/beside/status";
    world.server.next(path, [Fault::Status(409, "Conflict"), Fault::Status(500, "InternalError")]);
    writing(&mut world).await;
    let conflicts = || world.metric(r#"namegate_collect_status_writes_total{result="conflict"}"#);
    world.wait("a conflict", || conflicts() == 1.0).await;
    // The change that it was in conflict with.
    beside["metadata"]["labels"] = json!({"a": "b"});
    world.server.put(POLICIES, &beside);
    world
        .wait("the condition", || {
            world.server.get(POLICIES, "shop/beside")["status"]["conditions"][1]["status"] == "False"
        })
        .await;
    assert_eq!(condition(&world, "beside"), other);
    world.ready().await;
    assert_eq!(world.metric(r#"namegate_collect_status_writes_total{result="failed"}"#), 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_that_does_not_allow_it_is_a_reason_and_the_snapshot_goes_on() {
    let mut world = World::inhabited();
    let path_of = "/apis/cilium.io/v2/namespaces/shop/ciliumnetworkpolicies/web/status";
    world.server.always(path_of, Some(Fault::Status(403, "Forbidden")));
    let mut settings = world.settings();
    settings.write_status = true;
    world.start(settings, Box::new(|_| Ok(()))).await;
    let reason = || world.collector().reasons().into_iter().find(|reason| reason.starts_with("status: "));
    world
        .wait("a reason", || reason().is_some_and(|reason| reason.contains("shop/web") && reason.contains("403")))
        .await;
    let namespace = object(None, "other", json!({}));
    world.server.put("namespaces", &namespace);
    world.until("a namespace", |objects| objects.contains_key("Namespace other")).await;
    world.server.always(path_of, None);
    world.wait("the condition", || condition(&world, "web")["status"] == "True").await;
    world.ready().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ciliums_settings_decide_what_a_policy_may_say() {
    let mut world = World::inhabited();
    let mut nodes = policy("nodes", "a.example.com");
    nodes["spec"]["egress"] = json!([{"toNodes": [{"matchLabels": {"a": "b"}}]}]);
    world.server.put(POLICIES, &nodes);
    writing(&mut world).await;
    world.wait("the condition", || condition(&world, "nodes")["status"] == "False").await;
    let settings = json!({"data": {"enable-node-selector-labels": "true"}});
    world.server.put("configmaps", &object(Some("kube-system"), "cilium-config", settings));
    world.wait("the condition", || condition(&world, "nodes")["status"] == "True").await;
}
