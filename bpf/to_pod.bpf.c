// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TC egress of the host's side of a pod's veth, or TC ingress of the pod's own interface: what the pod receives. */
#include "include/steer.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define NEXT -1 /* TCX_NEXT, and TC_ACT_UNSPEC for clsact */
#define DROP 2	/* TC_ACT_SHOT */

static __always_inline enum reason verdict(struct __sk_buff *skb, struct context *c)
{
	enum reason reason = begin(skb, c, FLOW_INGRESS);

	if (reason != REASON_FLOW)
		return reason;
	if (!(c->endpoint.flags & ENDPOINT_ENFORCE))
		return REASON_UNENFORCED;
	make_linear(skb);
	reason = parse(skb, &c->frame);
	if (reason == REASON_ND && c->frame.hop_limit != 255 && !is_multicast(&c->frame))
		return REASON_ND_SPOOFED; /* it was forwarded: not from this link (RFC 4861, 7.1) */
	if (reason != REASON_FLOW)
		return reason; /* ARP and ND of others are policed where they come from */
	reason = police_addresses(skb, c);
	if (reason != REASON_FLOW)
		return reason;
	if (c->frame.fragment) {
		reason = follow(c);
		if (reason != REASON_FLOW)
			return reason;
	}
	if (is_beside())
		reason = is_to_proxy(c) ? REASON_PROXY : REASON_FLOW;
	else
		reason = steer_reply(skb, c);
	if (reason == REASON_FLOW)
		reason = decide(skb, c);
	return c->frame.fragment ? lead(c, reason) : reason;
}

SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	struct context c = {};
	enum reason reason;

	if (is_beside() && reject_mark && skb->mark == reject_mark) {
		skb->mark = 0;
		return NEXT;
	}
	reason = verdict(skb, &c);
	if (is_audited(&c, reason))
		reason = audited(&c, reason);
	if (c.probe)
		return passes(reason) ? NEXT : DROP;
	count(reason, FLOW_INGRESS, skb->len);
	if (!passes(reason) || (reason >= REASON_GRANTED && reason <= REASON_HOST) || reason == REASON_AUDIT ||
	    reason == REASON_ADOPTED)
		tell(&c, reason, 0);
	return passes(reason) ? NEXT : DROP;
}
