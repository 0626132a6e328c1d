// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TC ingress of the pod's own interface, in the pod's network namespace: there arrives what the CNI delivers with
 * bpf_redirect_peer, which the host's side never sees, and all else.
 *
 * Numbers of interfaces mean nothing in another namespace, so each interface has a program of its own that knows whose
 * it is: these few instructions. What they call judges for all, is loaded once, and is replaced for all at once. Not
 * bpf_get_netns_cookie, which kernels before 6.15 refuse to programs of TC.
 */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define DROP 2 /* TC_ACT_SHOT */

/* Set before load: the number of the host's side, which is the key of `endpoints`. */
const volatile __u32 whose = 0;

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32);
	__uint(pinning, LIBBPF_PIN_BY_NAME);
} judge SEC(".maps");

SEC("tc")
int inside(struct __sk_buff *skb)
{
	skb->cb[0] = whose;
	bpf_tail_call(skb, &judge, 0);
	return DROP; /* there is nobody to judge it */
}
