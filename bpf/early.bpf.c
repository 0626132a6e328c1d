// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* XDP on the host's side of a pod's veth, in front of from_pod: what is refused for certain goes before the kernel has
 * made a socket buffer of it. Everything else is from_pod's, which judges it as if this program were not there. So this
 * one only drops, and leaves no trace but counts and events of what it dropped.
 *
 * Packets come here ahead of TC, which may still hold their predecessors: what they depend on is not judged here.
 */
#define EARLY
#include "include/verdict.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* A conversation moves on even by what is refused in it (`revoke`). */
static __always_inline int has_flow(const struct context *c)
{
	struct flow_key key = {};

	key_of(c, &key);
	return bpf_map_lookup_elem(&flows, &key) != 0;
}

/* Anything over UDP or TCP to a port that queries go to. */
static __always_inline int may_be_steered(const struct context *c)
{
	__be16 port = c->frame.destination_port;

	return c->endpoint.flags & ENDPOINT_STEER && (port == bpf_htons(53) || port == bpf_htons(853));
}

/* REASON_FLOW: that is for TC to say. */
static __always_inline enum reason verdict(struct xdp_md *packet, struct context *c)
{
	enum reason reason = police_sender(packet, c);

	if (reason != REASON_FLOW)
		return reason;
	if (c->frame.fragment || may_be_steered(c) || has_flow(c))
		return REASON_FLOW;
	return decide(packet, c);
}

SEC("xdp.frags")
int early(struct xdp_md *packet)
{
	struct context c = {};
	enum reason reason = excuse(&c, verdict(packet, &c));

	if (passes(reason) || is_answered(&c, reason))
		return XDP_PASS;
	count(reason, FLOW_EGRESS, c.frame.octets);
	tell(&c, reason, 0);
	return XDP_DROP;
}
