use std::time::{Duration, SystemTime};

use super::*;

const ARGS: &str = r#"[["IgnoreUnknown","1"],["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web-0"],
    ["K8S_POD_INFRA_CONTAINER_ID","0b1c"],["K8S_POD_UID","6f0c2f1e-0000-4000-8000-000000000001"]]"#;

/// A file around a result.
fn file(args: &str, result: &str) -> String {
    format!(
        r#"{{"kind":"cniCacheV1","containerId":"0b1c","config":"eyJjbmlWZXJzaW9uIjoiMS4wLjAifQ==","ifName":"eth0",
            "networkName":"k8s-pod-network","netns":"/var/run/netns/cni-1","cniArgs":{args},
            "capabilityArgs":{{"dns":{{}},"io.kubernetes.cri.pod-annotations":{{}}}},"result":{result}}}"#
    )
}

#[track_caller]
fn says(text: &str, outside: &[&str], addresses: &[&str]) {
    let cached = parse(text.as_bytes()).unwrap_or_else(|error| panic!("{error}: {text}")).expect("it is a pod's");
    assert_eq!(cached.pod.to_string(), "shop/web-0");
    assert_eq!(cached.uid.as_deref(), Some("6f0c2f1e-0000-4000-8000-000000000001"));
    assert_eq!((cached.container.as_str(), cached.inside.as_str()), ("0b1c", "eth0"));
    assert_eq!(cached.outside, outside);
    let expected: Vec<IpAddr> = addresses.iter().map(|address| address.parse().unwrap()).collect();
    assert_eq!(cached.addresses, expected);
}

#[test]
fn what_calico_writes_is_read() {
    let result = r#"{"cniVersion":"0.3.1","dns":{},"interfaces":[{"name":"cali05f4a1849c5"}],
        "ips":[{"address":"198.51.100.10/32","version":"4"},{"address":"2001:db8:1::10/128","version":"6"}]}"#;
    says(&file(ARGS, result), &["cali05f4a1849c5"], &["198.51.100.10", "2001:db8:1::10"]);
}

#[test]
fn what_flannel_and_bridge_write_is_read() {
    let result = r#"{"cniVersion":"1.0.0","dns":{},"interfaces":[
        {"mac":"8e:f0:0c:00:00:01","name":"cni0"},{"mac":"8e:f0:0c:00:00:02","name":"veth1a2b3c4d"},
        {"mac":"8e:f0:0c:00:00:03","name":"eth0","sandbox":"/var/run/netns/cni-1"}],
        "ips":[{"address":"198.51.100.10/24","gateway":"198.51.100.1","interface":2}],"routes":[{"dst":"0.0.0.0/0"}]}"#;
    says(&file(ARGS, result), &["cni0", "veth1a2b3c4d"], &["198.51.100.10"]);
}

#[test]
fn what_the_aws_vpc_cni_writes_is_read() {
    let result = r#"{"cniVersion":"0.4.0","dns":{},"interfaces":[{"name":"eni05f4a1849c5"},
        {"name":"eth0","sandbox":"/var/run/netns/cni-1"},{"mac":"0","name":"dummy05f4a1849c","sandbox":"0"}],
        "ips":[{"address":"198.51.100.10/32","interface":1,"version":"4"}]}"#;
    says(&file(ARGS, result), &["eni05f4a1849c5"], &["198.51.100.10"]);
}

#[test]
fn what_plugins_before_cni_0_3_write_is_read() {
    let result = r#"{"cniVersion":"0.2.0","ip4":{"ip":"198.51.100.10/24"},"ip6":{"ip":"2001:db8:1::10/64"},"dns":{}}"#;
    says(&file(ARGS, result), &[], &["198.51.100.10", "2001:db8:1::10"]);
}

#[test]
fn what_is_no_pods_is_nobodys() {
    let result = r#"{"interfaces":[{"name":"veth1"}],"ips":[]}"#;
    for args in ["null", "[]", r#"[["IgnoreUnknown","1"]]"#] {
        assert_eq!(parse(file(args, result).as_bytes()).unwrap(), None, "{args}");
    }
}

#[test]
fn what_is_broken_is_refused_with_its_place() {
    let good = r#"{"interfaces":[{"name":"veth1"}],"ips":[{"address":"198.51.100.10/24"}]}"#;
    let with = |result: &str| file(ARGS, result);
    let args = |args: &str| file(args, good);
    let cases: Vec<(String, &str)> = vec![
        (String::new(), "it is no JSON"),
        ("{".into(), "it is no JSON"),
        ("\0\0\0\0".into(), "it is no JSON"),
        (with(good)[..200].to_owned(), "it is no JSON"),
        (with(good) + "{}", "it is no JSON"),
        ("[".repeat(100_000), "it is no JSON"),
        ("[]".into(), "the file is a list of 0; allowed is an object"),
        ("null".into(), "the file is null; allowed is an object"),
        (good.into(), "kind is missing; allowed is \"cniCacheV1\""),
        (with(good).replace("cniCacheV1", "cniCacheV9"), "kind is \"cniCacheV9\"; allowed is \"cniCacheV1\""),
        (
            with(good).replace("\"0b1c\",\"config\"", "\"\",\"config\""),
            "containerId is \"\"; allowed is a container's name",
        ),
        (with(good).replace("\"eth0\"", "7"), "ifName is 7; allowed is an interface's name"),
        (with(good).replace("\"eth0\"", "\"../eth0\""), "ifName is \"../eth0\"; allowed is an interface's name"),
        (args("{}"), "cniArgs is an object; allowed is a list"),
        (args(r#"[["K8S_POD_NAME"]]"#), "cniArgs[0] is a list of 1; allowed is a pair of texts"),
        (args(r#"[["K8S_POD_NAME",1]]"#), "cniArgs[0] is a list of 2; allowed is a pair of texts"),
        (
            args(r#"[["K8S_POD_NAME","a"]]"#),
            "cniArgs K8S_POD_NAMESPACE is missing; allowed is the name of a Kubernetes object",
        ),
        (
            args(r#"[["K8S_POD_NAMESPACE","a"],["K8S_POD_NAME","../b"]]"#),
            "cniArgs K8S_POD_NAME is \"../b\"; allowed is the name of a Kubernetes object",
        ),
        (with("null"), "result is null; allowed is an object"),
        (with("[]"), "result is a list of 0; allowed is an object"),
        (with(r#"{"interfaces":{}}"#), "result.interfaces is an object; allowed is a list"),
        (with(r#"{"interfaces":["veth1"]}"#), "result.interfaces[0] is \"veth1\"; allowed is an object"),
        (with(r#"{"interfaces":[{}]}"#), "result.interfaces[0].name is missing; allowed is an interface's name"),
        (
            with(r#"{"interfaces":[{"name":"sixteen-octets-x"}]}"#),
            "result.interfaces[0].name is \"sixteen-octets-x\"; allowed is an interface's name",
        ),
        (
            with(r#"{"interfaces":[{"name":"a b"}]}"#),
            "result.interfaces[0].name is \"a b\"; allowed is an interface's name",
        ),
        (
            with(r#"{"interfaces":[{"name":"veth1","sandbox":1}]}"#),
            "result.interfaces[0].sandbox is 1; allowed is a text",
        ),
        (with(r#"{"ips":{}}"#), "result.ips is an object; allowed is a list"),
        (
            with(r#"{"ips":[{"address":"198.51.100.10/24","interface":0}]}"#),
            "result.ips[0].interface is 0; allowed is the number of one of result.interfaces",
        ),
        (
            with(r#"{"interfaces":[{"name":"veth1"}],"ips":[{"address":"198.51.100.10/24","interface":-1}]}"#),
            "result.ips[0].interface is -1; allowed is the number of one of result.interfaces",
        ),
    ];
    for (text, expected) in cases {
        let error = parse(text.as_bytes()).map(|says| format!("{says:?}")).unwrap_err().to_string();
        assert_eq!(error, expected, "{}", text.chars().take(200).collect::<String>());
    }
    let addresses =
        ["", "x", "198.51.100.10/33", "198.51.100.256", "127.0.0.1/8", "0.0.0.0/0", "::/0", "ff02::1/128", "224.0.0.1"];
    for address in addresses.into_iter().chain(["::ffff:198.51.100.10/128", "198.51.100.10/24 "]) {
        let result = format!(r#"{{"ips":[{{"address":"{address}"}}]}}"#);
        let error = parse(with(&result).as_bytes()).unwrap_err().to_string();
        assert!(error.starts_with("result.ips[0].address is "), "{address}: {error}");
    }
}

/// Every file with one octet changed or cut off is read or refused: nothing else happens, and the pod is never another one
/// than the octets say.
#[test]
fn no_octet_that_is_changed_makes_it_panic() {
    let result = r#"{"interfaces":[{"name":"veth1"},{"name":"eth0","sandbox":"/n"}],"ips":[{"address":"198.51.100.10/24","interface":1}]}"#;
    let good = file(ARGS, result).into_bytes();
    let mut read = 0;
    for at in 0..good.len() {
        let _ = parse(&good[..at]);
        for octet in [0, b'"', b'[', b'{', b'0', 0xff] {
            let mut bad = good.clone();
            bad[at] = octet;
            read += usize::from(matches!(parse(&bad), Ok(Some(_))));
        }
    }
    assert!(read > 100, "{read}: octets of what is not looked at");
}

fn put(cache: &Cache, name: &str, interface: &str, pod: &str) {
    fs::create_dir_all(cache.directory()).unwrap();
    let args = format!(r#"[["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","{pod}"]]"#);
    fs::write(cache.directory().join(name), file(&args, &format!(r#"{{"interfaces":[{{"name":"{interface}"}}]}}"#)))
        .unwrap();
}

fn pod_of(cache: &Cache, interface: &str) -> Option<String> {
    cache.of(interface).map(|(cached, _)| cached.pod.name.clone())
}

#[test]
fn an_interface_is_found_by_its_name_until_its_file_is_gone() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = Cache::new(folder.path());
    let later = crate::clock::wall() + Duration::from_secs(60);
    assert_eq!(cache.read_all(later).unwrap(), BTreeSet::new(), "not there yet");
    put(&cache, "net-0b1c-eth0", "veth1", "a");
    put(&cache, "net-0b1d-eth0", "veth2", "b");
    assert_eq!(cache.read("net-0b1c-eth0"), ["veth1".to_owned()].into());
    assert_eq!(cache.read_all(later).unwrap(), ["veth2".to_owned()].into(), "the other one is read already");
    assert_eq!((pod_of(&cache, "veth1"), pod_of(&cache, "veth2")), (Some("a".into()), Some("b".into())));
    assert_eq!(cache.read("net-0b1c-eth0"), BTreeSet::new(), "it is as it was");
    fs::remove_file(cache.directory().join("net-0b1c-eth0")).unwrap();
    assert_eq!(cache.read_all(later).unwrap(), ["veth1".to_owned()].into());
    fs::remove_file(cache.directory().join("net-0b1d-eth0")).unwrap();
    assert_eq!(cache.read("net-0b1d-eth0"), ["veth2".to_owned()].into());
    assert_eq!((cache.files.len(), cache.naming.len()), (0, 0), "nothing is left");
}

#[test]
fn of_two_files_for_one_interface_the_newer_one_holds_and_none_if_both_are_as_new() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = Cache::new(folder.path());
    put(&cache, "net-old-eth0", "veth1", "a");
    put(&cache, "net-new-eth0", "veth1", "b");
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let date = |cache: &Cache, name: &str, seconds| {
        File::options().write(true).open(cache.directory().join(name)).unwrap().set_modified(at(seconds)).unwrap();
    };
    date(&cache, "net-old-eth0", 100);
    date(&cache, "net-new-eth0", 200);
    cache.read_all(at(300)).unwrap();
    assert_eq!(pod_of(&cache, "veth1"), Some("b".into()));
    date(&cache, "net-old-eth0", 200);
    cache.read_all(at(300)).unwrap();
    assert_eq!(pod_of(&cache, "veth1"), None, "nobody knows which");
    fs::remove_file(cache.directory().join("net-new-eth0")).unwrap();
    cache.read_all(at(300)).unwrap();
    assert_eq!(pod_of(&cache, "veth1"), Some("a".into()));
}

#[test]
fn a_broken_file_is_left_out_and_counted_and_a_half_written_one_waited_for() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = Cache::new(folder.path());
    put(&cache, "net-0b1c-eth0", "veth1", "a");
    let half = cache.directory().join("net-0b1d-eth0");
    fs::write(&half, "{").unwrap();
    let written = fs::metadata(&half).unwrap().modified().unwrap();
    cache.read_all(written).unwrap();
    assert_eq!(cache.refused(), 0, "its writer may not have finished");
    cache.read_all(written + UNFINISHED).unwrap();
    cache.read_all(written + UNFINISHED).unwrap();
    assert_eq!(cache.refused(), 1, "once");
    let (file, why) = cache.refusals().next().unwrap();
    assert_eq!(file, "net-0b1d-eth0");
    assert!(why.starts_with("it is no JSON: EOF"), "{why}");
    assert_eq!(pod_of(&cache, "veth1"), Some("a".into()), "the others hold");
    put(&cache, "net-0b1d-eth0", "veth2", "b");
    cache.read("net-0b1d-eth0");
    assert_eq!((pod_of(&cache, "veth2"), cache.refusals().count()), (Some("b".into()), 0));
}

#[test]
fn what_is_no_file_or_too_long_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let mut cache = Cache::new(folder.path());
    fs::create_dir_all(cache.directory().join("a-directory")).unwrap();
    let pipe = std::ffi::CString::new(cache.directory().join("a-pipe").into_os_string().into_encoded_bytes()).unwrap();
    // SAFETY: a path that ends in NUL.
    assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
    fs::write(cache.directory().join("long"), vec![b' '; MAX_OCTETS as usize + 1]).unwrap();
    cache.read_all(crate::clock::wall() + Duration::from_secs(60)).unwrap();
    let refusals: Vec<_> = cache.refusals().map(|(file, why)| format!("{file}: {why}")).collect();
    assert_eq!(refusals, ["long: it has 1048577 octets; at most 1048576 are read"]);
}

#[test]
fn an_interface_of_the_pod_without_its_sandbox_is_not_taken_for_the_hosts() {
    says(&file(ARGS, r#"{"interfaces":[{"name":"veth1"},{"name":"eth0"}]}"#), &["veth1"], &[]);
}

#[track_caller]
fn is_in(namespace: Option<&str>, text: &str) {
    let cached = parse(text.as_bytes()).unwrap().expect("it is a pod's");
    assert_eq!(cached.namespace.as_deref(), namespace.map(Path::new), "{text}");
}

#[test]
fn the_pods_namespace_is_what_libcni_says_else_what_the_plugin_says_of_that_interface() {
    let result =
        |sandbox: &str| format!(r#"{{"interfaces":[{{"name":"veth1"}},{{"name":"eth0","sandbox":"{sandbox}"}}]}}"#);
    let old = |result: &str| file(ARGS, result).replace(r#""netns":"/var/run/netns/cni-1","#, "");
    is_in(Some("/var/run/netns/cni-1"), &file(ARGS, &result("/other")));
    is_in(Some("/other"), &old(&result("/other")));
    is_in(None, &old(&result("0")));
    is_in(None, &old(&result("netns/cni-1")));
    is_in(None, &old(r#"{"interfaces":[{"name":"veth1"},{"name":"net1","sandbox":"/other"}]}"#));
    is_in(None, &old(r#"{"interfaces":[{"name":"veth1"}]}"#));
}
