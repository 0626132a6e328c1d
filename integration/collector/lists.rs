//! What is there when a collector starts.

use std::time::Duration;

use namegate::cluster::files;
use namegate::cluster::snapshot::{LastGood, OnInvalid, read};
use namegate::collect::ConfigMaps;
use serde_json::{Value, json};

use super::server::{Fault, path};
use super::world::{World, changed, object, pod, policy};

#[tokio::test(flavor = "multi_thread")]
async fn the_snapshot_is_what_the_server_has_and_the_agent_reads_it() {
    let mut world = World::inhabited();
    world.start_plainly().await;
    world.ready().await;
    let objects = world.objects().expect("a snapshot");
    let keys: Vec<&str> = objects.keys().map(String::as_str).collect();
    let expected = [
        "CiliumCIDRGroup offices",
        "CiliumClusterwideNetworkPolicy all",
        "CiliumNetworkPolicy shop/web",
        "ConfigMap kube-system/cilium-config",
        "EndpointSlice shop/web-x",
        "Namespace shop",
        "NetworkPolicy shop/plain",
        "Node n1",
        "Pod shop/db-0",
        "Pod shop/web-0",
        "Service shop/web",
    ];
    assert_eq!(keys, expected);
    let snapshot = world.agent();
    assert_eq!((snapshot.refusals, snapshot.skipped), (Vec::new(), 0));
    let world_read = snapshot.world;
    assert_eq!((world_read.pods.len(), world_read.policies.len(), world_read.services.len()), (2, 3, 1));
    assert_eq!(world_read.cilium_config["cluster-name"], "c");
    assert_eq!(world.metric(r#"namegate_collect_objects{kind="pods"}"#), 2.0);
    assert_eq!(world.metric("namegate_collect_generations_total"), 1.0);
    assert_eq!(world.metric("namegate_collect_ready"), 1.0);
    // Paged, from etcd's present, and only the one ConfigMap that is wanted.
    assert_eq!(world.server.asked(&["/api/v1/pods?limit=500"]).len(), 1);
    let config = world.server.asked(&["configmaps?", "fieldSelector=metadata.name=cilium-config"]);
    assert!(config.len() >= 2, "listed and watched: {config:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_before_every_kind_was_listed() {
    for late in ["services", "ciliumnetworkpolicies", "configmaps"] {
        let mut world = World::inhabited();
        world.server.always(path(late), Some(Fault::Stuck));
        world.start(world.settings(), whole(11)).await;
        world
            .wait("watch of what is not late", || {
                !world.server.asked(&["/api/v1/namespaces?", "watch=true"]).is_empty()
            })
            .await;
        // Changes do not change that.
        world.server.put("pods", &pod("web-1", json!({"app": "web"})));
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(world.objects(), None, "{late}");
        let reasons = world.collector().reasons();
        assert_eq!(reasons[0], format!("{late}: not listed yet"), "{reasons:?}");
        assert_eq!(reasons[1..], ["snapshot: not written yet"]);
        world.server.always(path(late), None);
        world.ready().await;
        assert_eq!(world.objects().expect("a snapshot").len(), 12);
        assert!(world.seen() >= 1);
    }
}

/// At least so many objects in every generation.
fn whole(objects: usize) -> super::world::Rule {
    Box::new(move |found| if found.len() < objects { Err(format!("{} objects", found.len())) } else { Ok(()) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_of_many_pages_is_one_list_and_starts_again_when_it_can_not_be_continued() {
    let mut world = World::inhabited();
    let pods: Vec<Value> = (0..1_200).map(|number| pod(&format!("web-{number}"), json!({"app": "web"}))).collect();
    world.server.put_all("pods", &pods);
    world.server.page(100);
    // The first list breaks off in the middle, the second can't be continued.
    let broken = [Fault::Slow, Fault::Slow, Fault::Slow, Fault::Status(500, "InternalError")];
    let expired = [Fault::Slow, Fault::Slow, Fault::Status(410, "Expired")];
    world.server.next(path("pods"), broken.into_iter().chain(expired));
    world.start(world.settings(), whole(1_200)).await;
    world.ready().await;
    let objects = world.objects().expect("a snapshot");
    assert_eq!(objects.keys().filter(|key| key.starts_with("Pod ")).count(), 1_201); // and db-0
    assert_eq!(world.server.asked(&["GET /api/v1/pods?limit="]).len(), 3, "three beginnings");
    assert!(world.server.asked(&["GET /api/v1/pods?continue="]).len() > 14);
    assert_eq!(world.metric(r#"namegate_collect_errors_total{kind="pods",reason="gone"}"#), 1.0);
    assert_eq!(world.metric(r#"namegate_collect_errors_total{kind="pods",reason="server"}"#), 1.0);
    assert_eq!(world.metric(r#"namegate_collect_relists_total{kind="pods"}"#), 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_no_list_is_no_empty_cluster() {
    let mut world = World::inhabited();
    let bodies = [
        "",
        "{}",
        "null",
        r#"{"kind":"SomeList","apiVersion":"v1","metadata":{},"items":[]}"#,
        r#"{"kind":"SomeList","apiVersion":"v1","metadata":{"resourceVersion":"7"}}"#,
        r#"{"kind":"SomeList","metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"a"}}]}"#,
        "<html>gateway</html>",
    ];
    world.server.next(path("ciliumnetworkpolicies"), bodies.map(Fault::Body));
    world.server.next(path("pods"), bodies.map(Fault::Body).into_iter().chain([Fault::Hangup, Fault::Hangup]));
    world.start(world.settings(), whole(11)).await;
    world.ready().await;
    assert_eq!(world.metric(r#"namegate_collect_errors_total{kind="pods",reason="garbage"}"#), 7.0);
    assert_eq!(world.metric(r#"namegate_collect_errors_total{kind="pods",reason="unreachable"}"#), 2.0);
    assert_eq!(world.metric(r#"namegate_collect_errors_total{kind="ciliumnetworkpolicies",reason="garbage"}"#), 7.0);
    world.seen();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_pod_that_changes_is_one_file_that_is_read_again() {
    let mut world = World::inhabited();
    let pods: Vec<Value> = (0..500).map(|number| pod(&format!("web-{number}"), json!({"app": "web"}))).collect();
    world.server.put_all("pods", &pods);
    world.start_plainly().await;
    world.ready().await;
    let mut agent = files::Directory::new(&world.root);
    assert!(changed(&mut agent).len() > 200);
    world.server.put("pods", &pod("web-7", json!({"app": "web", "gen": "2"})));
    world.until("the new label", |objects| objects["Pod shop/web-7"]["metadata"]["labels"]["gen"] == "2").await;
    let files = changed(&mut agent);
    assert!(files.len() == 1 && files[0].starts_with("pods-"), "{files:?}");
    // A heartbeat says nothing that is read: no generation.
    let before = world.metric("namegate_collect_generations_total");
    let ready = json!({"status": {"conditions": [{"type": "Ready", "lastHeartbeatTime": "now"}],
        "addresses": [{"type": "InternalIP", "address": "203.0.113.1"}]}});
    let version = world.server.put("nodes", &object(None, "n1", ready));
    world.wait("the heartbeat", || world.server.version() >= version).await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert_eq!(world.metric("namegate_collect_generations_total"), before);
    assert_eq!(changed(&mut agent), [""; 0]);
}

#[tokio::test(flavor = "multi_thread")]
async fn of_pods_of_other_nodes_only_what_a_peer_needs_is_kept() {
    let mut world = World::inhabited();
    let mut own = pod("own", json!({"app": "web"}));
    own["spec"]["dnsPolicy"] = "None".into();
    let mut other = own.clone();
    other["metadata"]["name"] = "other".into();
    other["spec"]["nodeName"] = "n2".into();
    let mut done = other.clone();
    done["metadata"]["name"] = "done".into();
    done["status"]["phase"] = "Succeeded".into();
    world.server.put_all("pods", &[own, other.clone(), done]);
    let mut settings = world.settings();
    settings.node = Some("n1".to_owned());
    world.start(settings, Box::new(|_| Ok(()))).await;
    world.ready().await;
    let objects = world.objects().expect("a snapshot");
    assert_eq!(objects["Pod shop/own"]["spec"]["dnsPolicy"], "None");
    let peer = &objects["Pod shop/other"];
    assert!(peer["spec"].get("dnsPolicy").is_none() && peer["metadata"]["labels"]["app"] == "web", "{peer}");
    assert!(peer["status"]["podIPs"][0]["ip"].is_string() && !objects.contains_key("Pod shop/done"));
    // A pod that ends elsewhere goes; one that comes here is whole.
    other["status"]["phase"] = "Failed".into();
    world.server.put("pods", &other);
    world.until("the end of a peer", |objects| !objects.contains_key("Pod shop/other")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_nobody_knows_reaches_the_agent_which_refuses_the_policy() {
    let mut world = World::inhabited();
    let mut unknown = policy("unknown", "a.example.com");
    unknown["spec"]["egres"] = json!([{"toFQDNs": [{"matchName": "b.example.com"}]}]);
    unknown["metadata"]["managedFields"] = json!([{"manager": "kubectl"}]);
    world.server.put("ciliumnetworkpolicies", &unknown);
    world.start_plainly().await;
    world.ready().await;
    let snapshot = world.agent();
    let refused: Vec<_> =
        snapshot.refusals.iter().map(|refusal| (refusal.object.as_str(), refusal.place.as_str())).collect();
    assert_eq!(refused.len(), 1, "{refused:?}");
    assert_eq!(refused[0].0, "CiliumNetworkPolicy shop/unknown");
    assert!(refused[0].1.starts_with("ciliumnetworkpolicies-"), "{refused:?}");
    assert!(!world.objects().expect("a snapshot")["CiliumNetworkPolicy shop/unknown"].to_string().contains("kubectl"));
}

#[tokio::test(flavor = "multi_thread")]
async fn config_maps_hold_the_same_and_only_the_one_that_changed_is_written() {
    let mut world = World::inhabited();
    let refused = "/api/v1/namespaces/guard/configmaps/snapshot-0";
    world.server.next(refused, [Fault::Status(403, "Forbidden")]);
    let mut settings = world.settings();
    settings.config_maps = Some(ConfigMaps { namespace: "guard".to_owned(), prefix: "snapshot".to_owned() });
    world.start(settings, Box::new(|_| Ok(()))).await;
    // All of them are there, also those with nothing in them: a pod that mounts them must start.
    world.wait("8 ConfigMaps", || world.server.patches().len() == 8).await;
    world.ready().await;
    assert_eq!(world.server.asked(&["PATCH", refused]).len(), 2, "tried again");
    world.server.put("pods", &pod("web-0", json!({"app": "web", "generation": "2"})));
    world.wait("the one that changed", || world.server.patches().len() == 9).await;
    // Mounted together in one directory they are the snapshot.
    let folder = tempfile::tempdir().expect("a directory");
    for (path, map) in world.server.patches() {
        assert_eq!((&map["kind"], &map["metadata"]["namespace"]), (&json!("ConfigMap"), &json!("guard")), "{path}");
        for (name, text) in map["data"].as_object().expect("a map") {
            std::fs::write(folder.path().join(name), text.as_str().expect("text")).expect("written");
        }
    }
    let mounted = read(folder.path(), &LastGood::default(), OnInvalid::Refuse);
    let (mounted, ours) = (mounted, world.agent());
    assert_eq!((mounted.world, mounted.refusals), (ours.world, ours.refusals));
    tokio::time::sleep(Duration::from_millis(1_500)).await;
    assert_eq!(world.server.patches().len(), 9);
    // What has no room in them is said, and they stay.
    let labels = json!({"app": "x".repeat(600_000)});
    let many: Vec<Value> =
        (0..32).map(|number| object(None, &format!("n-{number}"), json!({"metadata": {"labels": labels}}))).collect();
    world.server.put_all("namespaces", &many);
    world
        .wait("a reason", || world.collector().reasons().iter().any(|reason| reason.contains("1048576 are allowed")))
        .await;
    world.until("the snapshot goes on", |objects| objects.contains_key("Namespace n-31")).await;
}
