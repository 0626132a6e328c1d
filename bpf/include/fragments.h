/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* Fragments follow their first (I11). A first fragment with its whole L4 header is judged as any packet, and remembered
 * when it passes; a later one passes when its first did and does not reach into it. So what decided is what arrives:
 * nothing can be put in place of the header that was judged.
 *
 * A row goes when all octets have arrived, when its time is over, and with the endpoint's generation: what policy
 * opened is judged anew by the next datagram. Its time is that of the receiver, who gives up after 30 s (Linux) to 60 s
 * (RFC 8200).
 */
#ifndef NAMEGATE_FRAGMENTS_H
#define NAMEGATE_FRAGMENTS_H

#include "verdict.h"

#define FRAGMENT_LIFE (30 * SECOND)

static __always_inline void fragment_key_of(const struct context *c, struct fragment_key *key)
{
	key->source = c->frame.source;
	key->destination = c->frame.destination;
	key->id = c->frame.fragment_id;
	key->endpoint_id = c->endpoint.id;
	key->protocol = c->frame.family == 4 ? c->frame.protocol : 0;
	key->direction = c->direction;
}

/* As `charge` for flows. */
static __always_inline int charge_fragment(const struct context *c)
{
	__u32 zero = 0;
	struct limits *limit = bpf_map_lookup_elem(&limits, &zero);
	struct budget *own = budget_of(c->endpoint.slot), *pool = budget_of(0);

	if (!limit || !own || !pool)
		return -1;
	if (__sync_fetch_and_add(&own->fragments, 1) < limit->fragment_share)
		return 0;
	if (__sync_fetch_and_add(&pool->fragments, 1) < limit->fragment_pool)
		return 1;
	__sync_fetch_and_add(&pool->fragments, -1);
	__sync_fetch_and_add(&own->fragments, -1);
	return -1;
}

static __always_inline void discharge_fragment(const struct context *c, int pooled)
{
	struct budget *own = budget_of(c->endpoint.slot), *pool = budget_of(0);

	if (own)
		__sync_fetch_and_add(&own->fragments, -1);
	if (pool && pooled)
		__sync_fetch_and_add(&pool->fragments, -1);
}

static __always_inline void forget_fragment(const struct context *c, const struct fragment_key *key, int pooled)
{
	if (!c->probe && !bpf_map_delete_elem(&fragments, key))
		discharge_fragment(c, pooled);
}

/* One more fragment has passed; with the last octet the row goes, so that the number may be used again at once. */
static __always_inline void arrive(const struct context *c, const struct fragment_key *key,
				   struct first_fragment *first)
{
	__u32 octets = c->frame.fragment_end - c->frame.fragment_begin, arrived;

	if (c->frame.fragment_last)
		first->total = c->frame.fragment_end;
	arrived = __sync_fetch_and_add(&first->arrived, octets) + octets;
	if (first->total && arrived >= first->total)
		forget_fragment(c, key, first->pooled);
}

/* Before a fragment is judged. REASON_FLOW: a first one, go on. Everything else is final. */
SEPARATE enum reason follow(const struct context *c)
{
	struct fragment_key key = {};
	struct first_fragment *first;
	__u32 *peer;

	if (!c)
		return REASON_INTERNAL;
	fragment_key_of(c, &key);
	peer = bpf_map_lookup_elem(&peers, c->direction == FLOW_EGRESS ? &key.destination : &key.source);
	if (peer && *peer == PEER_STEERING)
		return REASON_STEERING_ADDRESS; /* what the proxy hears and says fits in one packet */
	first = bpf_map_lookup_elem(&fragments, &key);
	if (first && c->now >= first->until_mono_ns) {
		forget_fragment(c, &key, first->pooled);
		first = 0;
	}
	if (c->frame.fragment == FRAGMENT_FIRST)
		return first ? REASON_FRAGMENT_OVERLAP : REASON_FLOW;
	if (!first || first->generation != c->endpoint.generation)
		return REASON_FRAGMENT_LONE;
	if (c->frame.fragment_begin < first->end)
		return REASON_FRAGMENT_OVERLAP;
	if (!c->probe)
		arrive(c, &key, first);
	return REASON_FRAGMENT_FOLLOWS;
}

/* After a first fragment was judged: what passed is remembered, or its later ones would be lone. */
SEPARATE enum reason lead(const struct context *c, enum reason reason)
{
	struct fragment_key key = {};
	struct first_fragment first = {};
	int pooled;
	long failed;

	if (!c)
		return REASON_INTERNAL;
	if (!passes(reason) || c->probe)
		return reason;
	fragment_key_of(c, &key);
	pooled = charge_fragment(c);
	if (pooled < 0)
		return REASON_FRAGMENT_BUDGET;
	first.until_mono_ns = c->now + FRAGMENT_LIFE;
	first.generation = c->endpoint.generation;
	first.end = c->frame.fragment_end;
	first.arrived = c->frame.fragment_end;
	first.pooled = pooled;
	failed = bpf_map_update_elem(&fragments, &key, &first, BPF_NOEXIST);
	if (!failed)
		return reason;
	discharge_fragment(c, pooled);
	return failed == -17 /* EEXIST: another CPU had one too */ ? REASON_FRAGMENT_OVERLAP : REASON_FRAGMENT_BUDGET;
}

#endif
