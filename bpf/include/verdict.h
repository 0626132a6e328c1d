/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* May this frame pass? Endpoint, frame, anti-spoofing, steering, flow, policy: in this order, in both
 * directions. Every branch ends in a reason, which the hook counts and carries out.
 */
#ifndef NAMEGATE_VERDICT_H
#define NAMEGATE_VERDICT_H

#include "beside.h"
#include "lifetime.h"
#include "police.h"

static __always_inline int meets(const struct group_bits *a, const struct group_bits *b)
{
	return (a->words[0] & b->words[0]) || (a->words[1] & b->words[1]);
}

static __always_inline void add(struct group_bits *to, const struct group_bits *more)
{
	to->words[0] |= more->words[0];
	to->words[1] |= more->words[1];
}

/* Groups that live grants open for the address. A flow that exists counts expired slots too: it outlives its TTL, but
 * not its rule (I9), because a reload clears the bits of what it takes away.
 */
static __always_inline void granted(const struct context *c, const struct address *remote, int established,
				    struct group_bits *groups, int *expired)
{
	struct grant_key key;
	struct grant *grant;

	key.endpoint_id = c->endpoint.id;
	__builtin_memcpy(key.addr, remote->octets, 16);
	grant = bpf_map_lookup_elem(&grants, &key);
	if (!grant)
		return;
#pragma unroll
	for (int i = 0; i < GRANT_SLOTS; i++) {
		if (!grant->slots[i].until_mono_ns)
			continue;
		if (established || c->now < grant->slots[i].until_mono_ns) {
			groups->words[0] |= grant->slots[i].bits[0];
			groups->words[1] |= grant->slots[i].bits[1];
		} else {
			*expired = 1;
		}
	}
	if (!c->probe)
		grant->last_used_ns = c->now;
}

static __always_inline struct group_bits *cidr_of(const struct context *c, const struct address *remote)
{
	if (!(c->endpoint.flags & ENDPOINT_HAS_CIDR))
		return 0;
	if (c->frame.family == 4) {
		struct cidr4_key key = {.prefix_len = 64, .policy_id = bpf_htonl(c->endpoint.policy_id)};

		__builtin_memcpy(key.addr, remote->octets + 12, 4);
		return bpf_map_lookup_elem(&cidr4, &key);
	}
	struct cidr6_key key = {.prefix_len = 160, .policy_id = bpf_htonl(c->endpoint.policy_id)};

	__builtin_memcpy(key.addr, remote->octets, 16);
	return bpf_map_lookup_elem(&cidr6, &key);
}

static __always_inline struct port_row *block_of(const struct context *c, __u8 direction, __be16 port)
{
	struct port_block_key key = {.prefix_len = 64,
				     .policy_id = bpf_htonl(c->endpoint.policy_id),
				     .direction = direction,
				     .protocol = c->frame.protocol,
				     .port = port};

	if (!(c->endpoint.flags & ENDPOINT_HAS_PORT_BLOCKS))
		return 0;
	return bpf_map_lookup_elem(&port_blocks, &key);
}

/* The row of the ports; `named`: it names the protocol. */
static __always_inline struct port_row *ports_of(const struct context *c, __u8 direction, __be16 port, int *named)
{
	struct port_key key = {.policy_id = c->endpoint.policy_id,
			       .port = port,
			       .protocol = c->frame.protocol,
			       .direction = direction};
	struct port_row *row = 0;

	*named = 1;
	if (port) /* port 0 of a packet is a port as any other; of a row, every port */
		row = bpf_map_lookup_elem(&ports, &key);
	if (!row)
		row = block_of(c, direction, port);
	if (row)
		return row;
	key.port = 0;
	row = bpf_map_lookup_elem(&ports, &key);
	if (row)
		return row;
	*named = 0;
	key.protocol = 0;
	return bpf_map_lookup_elem(&ports, &key);
}

/* The policy's word on a conversation that was, or would be, opened in `direction` with `remote` at the responder's
 * `port`. A constant number of look-ups whatever the number of rules.
 *
 * A type of ICMP that is no query (an error that quotes nothing of ours, a redirect, an answer to no question) is open
 * only to a rule that names it: rules without ports and open directions let queries pass, no more (I11).
 */
SEPARATE enum reason policy(const struct context *c, const struct address *remote, __u32 direction_and_port,
			    int established)
{
	struct group_bits matched = {.words = {1, 0}}, by_grant = {}, by_peer = {}, by_cidr = {};
	__u8 direction = direction_and_port >> 16;
	__be16 port = direction_and_port;
	struct port_row *row;
	__u32 *peer;
	int expired = 0, named, unasked;
	__u8 type;

	if (!c || !remote)
		return REASON_INTERNAL;
	type = bpf_ntohs(port) >> 8;
	unasked = is_icmp(c->frame.protocol) && (!type || query_of(c->frame.protocol, type) != type);
	if (direction == FLOW_EGRESS)
		granted(c, remote, established, &by_grant, &expired);
	peer = bpf_map_lookup_elem(&peers, remote);
	if (peer && *peer == PEER_STEERING)
		return REASON_STEERING_ADDRESS;
	if (peer && *peer == PEER_SERVICE && direction == FLOW_EGRESS) {
		struct service_key key = {
			.policy_id = c->endpoint.policy_id, .port = port, .protocol = c->frame.protocol};
		struct service *service;

		__builtin_memcpy(key.addr, remote->octets, 16);
		service = bpf_map_lookup_elem(&services, &key);
		if (service && service->verdict == SERVICE_ALLOW)
			return REASON_SERVICE;
		if (service && service->verdict == SERVICE_DENY)
			return REASON_POLICY_DENY;
		return unasked || c->endpoint.flags & ENDPOINT_DENY_EGRESS ? REASON_NO_GRANT : REASON_DEFAULT_ALLOW;
	}
	if (peer) {
		struct peer_bits_key key = {.policy_id = c->endpoint.policy_id, .peer_id = *peer};
		struct group_bits *bits = bpf_map_lookup_elem(&peer_bits, &key);

		if (bits)
			by_peer = *bits;
	} else {
		struct group_bits *bits = cidr_of(c, remote);

		if (bits)
			by_cidr = *bits;
	}
	add(&matched, &by_grant);
	add(&matched, &by_peer);
	add(&matched, &by_cidr);
	row = ports_of(c, direction, port, &named);
	if (row && meets(&matched, &row->deny))
		return REASON_POLICY_DENY;
	if (row && (named || !unasked) && meets(&matched, &row->allow)) {
		if (meets(&by_grant, &row->allow))
			return REASON_GRANTED;
		return meets(&by_peer, &row->allow) ? REASON_PEER : REASON_CIDR;
	}
	if (unasked)
		return REASON_NO_GRANT;
	if (direction == FLOW_INGRESS && peer && (*peer == PEER_HOST || *peer == PEER_HOST_APISERVER))
		return REASON_HOST; /* kubelet's probes, as in Cilium */
	if (!(c->endpoint.flags & (direction == FLOW_EGRESS ? ENDPOINT_DENY_EGRESS : ENDPOINT_DENY_INGRESS)))
		return REASON_DEFAULT_ALLOW;
	return expired ? REASON_EXPIRED : REASON_NO_GRANT;
}

/* One more flow for the endpoint: of its own share, else of the pool. -1: neither has room. */
static __always_inline int charge(const struct context *c)
{
	__u32 zero = 0;
	struct limits *limit = bpf_map_lookup_elem(&limits, &zero);
	struct budget *own = budget_of(c->endpoint.slot), *pool = budget_of(0);
	__u32 before;

	if (!limit || !own || !pool)
		return -1;
	before = __sync_fetch_and_add(&own->flows, 1);
	if (before < limit->flow_limit) {
		if (before < limit->flow_share)
			return 0;
		if (__sync_fetch_and_add(&pool->flows, 1) < limit->flow_pool)
			return 1;
		__sync_fetch_and_add(&pool->flows, -1);
	}
	__sync_fetch_and_add(&own->flows, -1);
	return -1;
}

static __always_inline int opens(const struct frame *f)
{
	if (f->protocol == IPPROTO_TCP)
		return (f->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
	if (is_icmp(f->protocol))
		return f->icmp_type && query_of(f->protocol, f->icmp_type) == f->icmp_type;
	return 0;
}

/* A packet of a live flow moves its state on. Plain stores: two CPUs may lose one step, never open anything. */
static __always_inline void advance(const struct context *c, struct flow *flow)
{
	__u8 flags = c->frame.tcp_flags, state = flow->state;

	if (c->frame.protocol == IPPROTO_TCP) {
		__u8 mine = c->direction == FLOW_EGRESS ? FLOW_FIN_EGRESS : FLOW_FIN_INGRESS;
		__u8 other = c->direction == FLOW_EGRESS ? FLOW_FIN_INGRESS : FLOW_FIN_EGRESS;

		if (flags & TCP_RST)
			state = FLOW_CLOSED;
		else if (state == FLOW_SYN && c->reply)
			state = FLOW_ESTABLISHED;
		if (!(flags & TCP_RST) && (flags & TCP_FIN))
			state = state == other || state == FLOW_CLOSED ? FLOW_CLOSED : mine;
	} else if (state == FLOW_DATAGRAM && c->reply) {
		state = FLOW_DATAGRAM_BOTH;
	}
	if (state != flow->state)
		flow->state = state;
	else if (c->now - flow->last_ns < SECOND)
		return; /* spare the cache line */
	flow->last_ns = c->now;
}

static __always_inline void forget(const struct context *c, const struct flow_key *key, int pooled)
{
	if (!c->probe && !bpf_map_delete_elem(&flows, key))
		discharge(c->endpoint.slot, pooled);
}

/* Policy took the flow away. It is remembered, for the other side does not know and goes on sending; without this, what
 * it sends would pass wherever ingress is open.
 */
static __always_inline void revoke(const struct context *c, struct flow *flow, __u32 reason)
{
	if (c->probe)
		return;
	flow->state = FLOW_REVOKED;
	flow->generation = c->endpoint.generation;
	flow->rule = reason;
	flow->last_ns = c->now;
}

/* Records a conversation that policy has just allowed. */
static __always_inline enum reason remember(const struct context *c, const struct flow_key *key, enum reason reason)
{
	struct flow fresh = {
		.last_ns = c->now,
		.created_ns = c->now,
		.generation = c->endpoint.generation,
		.rule = reason,
		.isn = opens(&c->frame) ? c->frame.sequence : 0,
		.state = c->frame.protocol != IPPROTO_TCP ? FLOW_DATAGRAM
			 : (c->frame.tcp_flags & TCP_RST) ? FLOW_CLOSED
							  : FLOW_SYN,
		.direction = c->opened,
	};
	int pooled;
	long failed;

	if (c->probe)
		return reason;
	pooled = charge(c);
	if (pooled < 0)
		return REASON_FLOW_BUDGET;
	fresh.pooled = pooled;
	failed = bpf_map_update_elem(&flows, key, &fresh, BPF_NOEXIST);
	if (!failed)
		return reason;
	discharge(c->endpoint.slot, pooled);
	return failed == -17 /* EEXIST: another CPU was first */ ? reason : REASON_FLOW_TABLE;
}

static __always_inline void key_of(const struct context *c, struct flow_key *key)
{
	const struct frame *f = &c->frame;
	int egress = c->direction == FLOW_EGRESS;

	key->remote = egress ? f->destination : f->source;
	key->local_port = egress ? f->source_port : f->destination_port;
	key->remote_port = egress ? f->destination_port : f->source_port;
	if (is_icmp(f->protocol)) {
		key->local_port = f->source_port;
		key->remote_port = bpf_htons((__u16)query_of(f->protocol, f->icmp_type) << 8);
	}
	key->endpoint_and_protocol = c->endpoint.id << 8 | f->protocol;
}

/* The responder's port as `ports` knows it. */
static __always_inline __be16 responder_port(const struct context *c, const struct flow_key *key, __u8 direction)
{
	if (is_icmp(c->frame.protocol))
		return key->remote_port;
	return direction == FLOW_EGRESS ? key->remote_port : key->local_port;
}

static __always_inline int passes(enum reason reason)
{
	return reason > REASON_LAST_DROP;
}

/* ICMP that is no query and belongs to no flow: passes, without one, where a rule names its type; `otherwise` if not.
 */
SEPARATE enum reason unasked(const struct context *c, enum reason otherwise)
{
	const struct address *remote;
	enum reason reason;

	if (!c)
		return REASON_INTERNAL;
	remote = c->direction == FLOW_EGRESS ? &c->frame.destination : &c->frame.source;
	reason = policy(c, remote, (__u32)c->direction << 16 | bpf_htons((__u16)c->frame.icmp_type << 8), 0);
	return reason == REASON_NO_GRANT ? otherwise : reason;
}

/* Whether connections from before the first start still go on. */
static __always_inline int adopts(const struct context *c)
{
	return c->now < c->endpoint.adopt_until_s * SECOND;
}

/* Nothing allows it; nothing denies it either. */
static __always_inline int is_wanting(enum reason reason)
{
	return reason == REASON_NO_GRANT || reason == REASON_EXPIRED;
}

/* The pod's own connections begin at such ports (net.ipv4.ip_local_port_range). */
#define EPHEMERAL 32768

/* A segment in the midst of a connection that nobody saw begin. `reason`: policy's word on its own direction, and the
 * answer. What comes to a port at which the pod's own connections begin may be of one of those, and is judged as the
 * pod's where ingress is open: a server that speaks first would otherwise bring back what policy has cut. What the pod
 * sends is never taken for an answer: that would open whatever ingress leaves open.
 */
SEPARATE enum reason midst(struct context *c, const struct flow_key *key, enum reason reason)
{
	enum reason turned;
	int goes_on;

	if (!c || !key)
		return REASON_INTERNAL;
	goes_on = adopts(c) && !(c->frame.tcp_flags & (TCP_SYN | TCP_RST)) && !(c->endpoint.flags & ENDPOINT_AUDIT);
	if (c->direction == FLOW_INGRESS && bpf_ntohs(key->local_port) >= EPHEMERAL &&
	    (reason == REASON_DEFAULT_ALLOW || (goes_on && is_wanting(reason)))) {
		turned = policy(c, &key->remote, (__u32)FLOW_EGRESS << 16 | responder_port(c, key, FLOW_EGRESS), 0);
		/* That egress is open is no word for what ingress refuses. */
		if (reason == REASON_DEFAULT_ALLOW || turned != REASON_DEFAULT_ALLOW) {
			c->opened = FLOW_EGRESS;
			reason = turned;
		}
	}
	return goes_on && is_wanting(reason) ? REASON_ADOPTED : reason;
}

/* A flow that policy judges anew. */
SEPARATE enum reason rejudge(const struct context *c, const struct flow_key *key, struct flow *flow)
{
	__u8 direction;
	enum reason reason;

	if (!c || !key || !flow)
		return REASON_INTERNAL;
	direction = flow->direction;
	reason = policy(c, &key->remote, (__u32)direction << 16 | responder_port(c, key, direction), 1);
	if (flow->rule != REASON_ADOPTED)
		return reason;
	if (is_wanting(reason) && adopts(c))
		return REASON_ADOPTED;
	if (!c->probe && passes(reason))
		flow->rule = reason;
	return reason;
}

/* The flow of the packet, and the policy when there is none, when it asks to open one, or when it changed. */
SEPARATE enum reason converse(struct context *c)
{
	struct flow_key key = {};
	struct flow *flow;
	enum reason reason;
	int opening, revoked = 0;
	__u8 icmp;

	if (!c)
		return REASON_INTERNAL;
	opening = opens(&c->frame);
	icmp = is_icmp(c->frame.protocol);
	key_of(c, &key);
	flow = bpf_map_lookup_elem(&flows, &key);
	if (flow && is_over(c->now, flow)) {
		forget(c, &key, flow->pooled);
		flow = 0;
	}
	if (flow) {
		__u32 generation = c->endpoint.generation;

		c->reply = flow->direction != c->direction;
		if (flow->generation != generation || (flow->rule == REASON_ADOPTED && !adopts(c))) {
			reason = rejudge(c, &key, flow);
			if (!passes(reason) && !(c->endpoint.flags & ENDPOINT_AUDIT)) {
				revoke(c, flow, reason);
				return reason;
			}
			if (!c->probe) {
				flow->generation = generation;
				if (flow->state == FLOW_REVOKED)
					flow->state = c->frame.protocol == IPPROTO_TCP ? FLOW_ESTABLISHED
										       : FLOW_DATAGRAM_BOTH;
			}
		}
		revoked = flow->state == FLOW_REVOKED;
		if (revoked && c->reply && !opening) {
			revoke(c, flow, flow->rule);
			return flow->rule;
		}
		if (!revoked && (!opening || (icmp && !c->reply))) {
			if (!c->probe)
				advance(c, flow);
			return REASON_FLOW;
		}
		if (!revoked && !icmp && !c->reply && flow->state == FLOW_SYN && flow->isn == c->frame.sequence)
			return REASON_FLOW; /* the same SYN once more */
	}
	if (icmp && !opening) {
		c->reply = 0;
		return unasked(c, REASON_NOT_A_REPLY);
	}
	reason = policy(c, &key.remote, (__u32)c->direction << 16 | responder_port(c, &key, c->direction), 0);
	if (!passes(reason) && flow && c->reply && reason == REASON_NO_GRANT)
		reason = REASON_NOT_A_REPLY;
	c->opened = c->direction;
	if (!flow && c->frame.protocol == IPPROTO_TCP && !opening)
		reason = midst(c, &key, reason);
	if (!passes(reason)) {
		if (!(c->endpoint.flags & ENDPOINT_AUDIT))
			return reason;
		/* Remembered as a flow, so that it is told once and its replies are replies. */
		c->audited = reason;
		reason = REASON_AUDIT;
	}
	c->reply = c->opened != c->direction;
	if (flow)
		forget(c, &key, flow->pooled);
	return remember(c, &key, reason);
}

/* An ICMP error passes when what it quotes is a live flow of this endpoint, seen from the other side (RFC 1122, 3.2.2;
 * path MTU discovery needs it).
 */
SEPARATE enum reason relate(PACKET *packet, struct context *c)
{
	struct flow_key key = {};
	struct flow *flow;
	struct frame *f;
	__u32 quoted, ports;
	struct address source, destination;
	__be16 port[2];

	if (!c)
		return REASON_INTERNAL;
	f = &c->frame;
	quoted = f->l4_offset + 8;
	ports = quoted + sizeof(struct ipv6hdr);
	if (f->family == 4) {
		struct iphdr ip;

		if (load(packet, quoted, &ip, sizeof(ip)) || ip.version != 4 || ip.ihl < 5)
			return REASON_MALFORMED;
		if (ip.frag_off & bpf_htons(0x1fff))
			return REASON_ICMP_UNRELATED; /* a later fragment has no ports */
		set_v4(&source, ip.saddr);
		set_v4(&destination, ip.daddr);
		key.endpoint_and_protocol = ip.protocol;
		ports = quoted + ip.ihl * 4;
	} else {
		struct ipv6hdr ip;

		if (load(packet, quoted, &ip, sizeof(ip)) || ip.version != 6)
			return REASON_MALFORMED;
		__builtin_memcpy(&source, &ip.saddr, 16);
		__builtin_memcpy(&destination, &ip.daddr, 16);
		if (is_mapped(&source) || is_mapped(&destination))
			return REASON_ICMP_UNRELATED;
		key.endpoint_and_protocol = ip.nexthdr;
		if (ip.nexthdr == IPPROTO_FRAGMENT) { /* a first fragment that was too big (RFC 8201) */
			struct fragment_header fragment;

			if (load(packet, ports, &fragment, sizeof(fragment)))
				return REASON_MALFORMED;
			if (fragment.offset & bpf_htons(0xfff8))
				return REASON_ICMP_UNRELATED;
			key.endpoint_and_protocol = fragment.next;
			ports += sizeof(fragment);
		}
	}
	if (load(packet, ports, port, sizeof(port)))
		return REASON_MALFORMED;
	if (is_icmp(key.endpoint_and_protocol)) {
		__u8 query = query_of(key.endpoint_and_protocol, *(__u8 *)port);

		if (!query)
			return REASON_ICMP_UNRELATED; /* no error is about an error (RFC 1122, 3.2.2) */
		if (load(packet, ports + 4, port, 2))
			return REASON_MALFORMED;
		key.local_port = port[0];
		key.remote_port = bpf_htons((__u16)query << 8);
	} else {
		/* To the pod: it quotes what the pod sent. From the pod: what it received. */
		key.local_port = c->direction == FLOW_INGRESS ? port[0] : port[1];
		key.remote_port = c->direction == FLOW_INGRESS ? port[1] : port[0];
	}
	if (!owns(&c->endpoint, c->direction == FLOW_INGRESS ? &source : &destination))
		return REASON_ICMP_UNRELATED;
	key.remote = c->direction == FLOW_INGRESS ? destination : source;
	/* An error of the pod goes to whom it has the flow with, else it would carry anything to anyone. One that comes
	 * in may be a router's. */
	if (c->direction == FLOW_EGRESS && !same_address(&f->destination, &key.remote))
		return REASON_ICMP_UNRELATED;
	if (is_beside() && c->direction == FLOW_INGRESS &&
	    proxy_socket_of(&key.remote, key.remote_port, key.local_port, key.endpoint_and_protocol))
		return REASON_ICMP_RELATED;
	key.endpoint_and_protocol |= c->endpoint.id << 8;
	flow = bpf_map_lookup_elem(&flows, &key);
	if (!flow || flow->generation != c->endpoint.generation || flow->state == FLOW_REVOKED || is_over(c->now, flow))
		return REASON_ICMP_UNRELATED;
	return REASON_ICMP_RELATED;
}

/* What is left when endpoint, frame, addresses and steering have had their say. */
static __always_inline enum reason decide(PACKET *packet, struct context *c)
{
	const struct frame *f = &c->frame;
	enum reason reason;

	if (!is_icmp(f->protocol) || query_of(f->protocol, f->icmp_type))
		return converse(c);
	if (!is_icmp_error(f))
		return unasked(c, REASON_PROTOCOL);
	reason = relate(packet, c);
	return reason == REASON_ICMP_UNRELATED ? unasked(c, reason) : reason;
}

/* Whether the run is to leave no trace. XDP's never does: what it lets through is judged again. */
static __always_inline int is_dry(PACKET *packet)
{
#ifdef EARLY
	(void)packet;
	return 1;
#else
	return probe_mark && packet->mark == probe_mark;
#endif
}

/* The key of `endpoints`. Both are read: of a choice clang (14) makes one load from an offset that it reckons, which
 * the verifier (6.18) refuses of a context.
 */
static __always_inline __u32 row_of(PACKET *packet)
{
	__u32 row = interface_of(packet);
#ifndef EARLY
	__u32 said = packet->cb[0];

	asm volatile("" : "+r"(row), "+r"(said));
	if (inside)
		row = said;
#endif
	return row;
}

/* Fills the context. REASON_FLOW: go on. */
static __always_inline enum reason begin(PACKET *packet, struct context *c, __u8 direction)
{
	__u32 ifindex = row_of(packet);
	struct endpoint *row = bpf_map_lookup_elem(&endpoints, &ifindex);

	c->now = bpf_ktime_get_coarse_ns();
	c->ifindex = ifindex;
	c->direction = direction;
	c->probe = is_dry(packet);
	c->frame.octets = octets_of(packet);
	if (!row)
		return REASON_NO_ENDPOINT;
	c->endpoint = *row;
	if (c->endpoint.flags & ENDPOINT_CLOSED)
		return REASON_ENDPOINT_CLOSED;
	return REASON_FLOW;
}

/* No policy selects the endpoint: it may do what it likes, as itself. */
static __always_inline enum reason unenforced(enum reason reason)
{
	switch (reason) {
	case REASON_SPOOFED_ADDRESS:
	case REASON_SPOOFED_MAC:
	case REASON_ARP_SPOOFED:
	case REASON_ND_SPOOFED:
		return reason;
	default:
		return REASON_UNENFORCED;
	}
}

/* The endpoint is watched, not guarded: what policy would drop passes. It still can't pretend to be another, nor reach
 * the proxy's own addresses.
 */
static __always_inline enum reason audited(struct context *c, enum reason reason)
{
	if (unenforced(reason) != REASON_UNENFORCED || reason == REASON_STEERING_ADDRESS ||
	    reason == REASON_OTHER_DESTINATION)
		return reason;
	c->audited = reason;
	return REASON_AUDIT;
}

/* Whether a refusal is only noted. */
static __always_inline int is_audited(const struct context *c, enum reason reason)
{
	return !passes(reason) && reason != REASON_NO_ENDPOINT && reason != REASON_ENDPOINT_CLOSED &&
	       (c->endpoint.flags & ENDPOINT_AUDIT) && (c->endpoint.flags & ENDPOINT_ENFORCE);
}

/* What a pod sends, as far as it can be judged without conversations. REASON_FLOW: go on. */
static __always_inline enum reason police_sender(PACKET *packet, struct context *c)
{
	enum reason reason = begin(packet, c, FLOW_EGRESS);

	if (reason != REASON_FLOW)
		return reason;
	make_linear(packet);
	reason = parse(packet, &c->frame);
	if (reason == REASON_ARP)
		return police_arp(packet, c);
	if (reason == REASON_ND)
		return police_nd(packet, c);
	if (c->frame.family) {
		enum reason spoofed = police_addresses(packet, c);

		if (spoofed != REASON_FLOW)
			return spoofed;
	}
	if (reason != REASON_FLOW)
		return reason;
	return c->endpoint.flags & ENDPOINT_ENFORCE ? REASON_FLOW : REASON_UNENFORCED;
}

/* What a pod sends is refused less when it is not guarded, or only watched. */
static __always_inline enum reason excuse(struct context *c, enum reason reason)
{
	if (reason != REASON_NO_ENDPOINT && reason != REASON_ENDPOINT_CLOSED && !passes(reason) &&
	    !(c->endpoint.flags & ENDPOINT_ENFORCE))
		reason = unenforced(reason);
	return is_audited(c, reason) ? audited(c, reason) : reason;
}

/* Whether a refusal is one that the pod may be told of: never for what was not understood, nor to many, nor for an ICMP
 * error or a later fragment (RFC 1122, 3.2.2).
 */
static __always_inline int is_answered(const struct context *c, enum reason reason)
{
	if (!(c->endpoint.flags & ENDPOINT_REJECT) || c->direction != FLOW_EGRESS)
		return 0;
	if (reason < REASON_UNKNOWN_RESOLVER || reason == REASON_ICMP_UNRELATED)
		return 0;
	if (is_multicast(&c->frame) || (c->frame.tcp_flags & TCP_RST))
		return 0;
	if (c->frame.fragment == FRAGMENT_LATER)
		return 0; /* it has no header to make a reset of */
	return !is_icmp(c->frame.protocol) || query_of(c->frame.protocol, c->frame.icmp_type);
}

#endif
