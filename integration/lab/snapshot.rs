//! Snapshots of worlds: the demo's cluster, with policies of a test's own.

use std::fs;
use std::path::{Path, PathBuf};

/// The demo's snapshot, as users see it.
pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("config/demo")
}

/// Copies the demo's snapshot whole.
#[track_caller]
pub fn copy_demo(to: &Path) {
    copy(to, |_| true);
}

/// Copies the demo's cluster without its policies; `policy` is the one file of policies.
#[track_caller]
pub fn with_policy(to: &Path, policy: &str) {
    copy(to, |name| name == "cluster.yaml" || name == "kube-dns.yaml");
    fs::write(to.join("policy.yaml"), policy).expect("a file can be written");
}

/// Writes a file as a mounted volume's owner would: beside it, then renamed over it.
#[track_caller]
pub fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new~");
    fs::write(&beside, text).expect("a file can be written");
    fs::rename(&beside, path).expect("a file can be renamed");
}

/// A policy for one of the pods (`payment-processor`, `reports`): it may ask the cluster's DNS anything, and has the
/// egress rules of `rules`, YAML indented by two.
pub fn policy(app: &str, rules: &str) -> String {
    format!(
        "apiVersion: cilium.io/v2\n\
         kind: CiliumNetworkPolicy\n\
         metadata: {{name: {app}, namespace: payments}}\n\
         spec:\n  \
           endpointSelector: {{matchLabels: {{app: {app}}}}}\n  \
           egress:\n  \
           - toEndpoints:\n    \
             - matchLabels: {{k8s:io.kubernetes.pod.namespace: kube-system, k8s:k8s-app: kube-dns}}\n    \
             toPorts:\n    \
             - ports: [{{port: \"53\", protocol: ANY}}]\n      \
               rules: {{dns: [{{matchPattern: \"*\"}}]}}\n\
         {rules}---\n"
    )
}

#[track_caller]
fn copy(to: &Path, wanted: impl Fn(&str) -> bool) {
    fs::create_dir_all(to).expect("a directory can be made");
    for entry in fs::read_dir(demo()).expect("config/demo is there").flatten() {
        let name = entry.file_name().into_string().expect("a name in UTF-8");
        if wanted(&name) {
            fs::copy(entry.path(), to.join(name)).expect("a file can be copied");
        }
    }
}
