// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* TC egress of the host's side of a pod's veth, or TC ingress of the pod's own interface: what the pod receives.
 *
 * On the host's side of an endpoint whose own side judges (ENDPOINT_INSIDE), it only rewrites what the proxy answers.
 * One of the two judges each packet, so that it counts once. The proxy's answer belongs to no flow, and on the pod's
 * side looks like anyone's: it goes there by from_pod's bpf_redirect_peer, with a mark that nobody else can give it.
 */
#include "include/steer.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define NEXT -1 /* TCX_NEXT, and TC_ACT_UNSPEC for clsact */
#define DROP 2	/* TC_ACT_SHOT */

#define ELSEWHERE REASON_COUNT /* the other side of the pair judges it */

/* On the host's side, where the pod's judges. */
static __always_inline enum reason pass_on(struct __sk_buff *skb, struct context *c)
{
	enum reason reason;

	if (!(c->endpoint.flags & ENDPOINT_STEER))
		return ELSEWHERE;
	make_linear(skb);
	if (parse(skb, &c->frame) != REASON_FLOW || c->frame.fragment || police_addresses(skb, c) != REASON_FLOW)
		return ELSEWHERE;
	reason = steer_reply(skb, c);
	return reason == REASON_FLOW ? ELSEWHERE : reason;
}

static __always_inline enum reason verdict(struct __sk_buff *skb, struct context *c)
{
	enum reason reason = begin(skb, c, FLOW_INGRESS);

	if (reason != REASON_FLOW)
		return reason;
	if (inside && !(c->endpoint.flags & ENDPOINT_INSIDE))
		return ELSEWHERE;
	if (inbound_mark && !inside && c->endpoint.flags & ENDPOINT_INSIDE)
		return pass_on(skb, c);
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
	else if (inside)
		reason = REASON_FLOW;
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
	if (inside && skb->mark == inbound_mark) {
		skb->mark = 0;
		return NEXT;
	}
	reason = verdict(skb, &c);
	if (reason == ELSEWHERE)
		return NEXT;
	if (is_audited(&c, reason))
		reason = audited(&c, reason);
	if (c.probe)
		return passes(reason) ? NEXT : DROP;
	count(reason, FLOW_INGRESS, skb->len);
	if (!passes(reason) || (reason >= REASON_GRANTED && reason <= REASON_HOST) || reason == REASON_AUDIT ||
	    reason == REASON_ADOPTED)
		tell(&c, reason, 0);
	if (inbound_mark && !inside && reason == REASON_STEERED && c.endpoint.flags & ENDPOINT_INSIDE) {
		skb->mark = inbound_mark;
		return bpf_redirect(skb->ifindex, BPF_F_INGRESS);
	}
	return passes(reason) ? NEXT : DROP;
}
