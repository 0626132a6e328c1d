// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TC ingress of the host's side of a pod's veth, or TC egress of the pod's own interface: what the pod sends. */
#include "include/reject.h"
#include "include/steer.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define NEXT -1 /* TCX_NEXT, and TC_ACT_UNSPEC for clsact: other agents' programs still run */

static __always_inline enum reason verdict(struct __sk_buff *skb, struct context *c)
{
	enum reason reason = police_sender(skb, c);

	if (reason != REASON_FLOW)
		return reason;
	if (c->frame.fragment) {
		reason = follow(c);
		if (reason != REASON_FLOW)
			return reason;
	}
	reason = is_beside() ? keep_queries(skb, c) : steer_query(skb, c);
	if (reason == REASON_FLOW)
		reason = decide(skb, c);
	return c->frame.fragment ? lead(c, reason) : reason;
}

SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	struct context c = {};
	enum reason reason;
	int rejected;

	/* An answer of the proxy's, which to_pod sends this way so that it arrives with its mark. */
	if (inbound_mark && skb->mark == inbound_mark)
		return bpf_skb_change_type(skb, 0 /* PACKET_HOST */) ? DROP : bpf_redirect_peer(skb->ifindex, 0);
	reason = excuse(&c, verdict(skb, &c));
	if (c.probe)
		return passes(reason) ? NEXT : DROP;
	count(reason, FLOW_EGRESS, skb->len);
	if (passes(reason)) {
		if ((reason >= REASON_GRANTED && reason <= REASON_DEFAULT_ALLOW) || reason == REASON_AUDIT ||
		    reason == REASON_ADOPTED)
			tell(&c, reason, 0);
		return NEXT;
	}
	rejected = may_reject(&c, reason);
	tell(&c, reason, rejected);
	return rejected ? reject(skb, &c) : DROP;
}
