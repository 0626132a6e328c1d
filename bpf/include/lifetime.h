/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/* When a flow is over, and whose budget it then no longer counts in: for packets, and for the sweep of a dead proxy. */
#ifndef NAMEGATE_LIFETIME_H
#define NAMEGATE_LIFETIME_H

#include "context.h"

static __always_inline struct budget *budget_of(__u32 slot)
{
	return bpf_map_lookup_elem(&budgets, &slot);
}

/* One flow less of the slot, and of the pool if it was charged to that. */
static __always_inline void discharge(__u32 slot, int pooled)
{
	struct budget *own = budget_of(slot), *pool = budget_of(0);

	if (own)
		__sync_fetch_and_add(&own->flows, -1);
	if (pool && pooled)
		__sync_fetch_and_add(&pool->flows, -1);
}

static __always_inline __u64 timeout_of(__u8 state)
{
	switch (state) {
	case FLOW_ESTABLISHED:
	case FLOW_FIN_EGRESS:
	case FLOW_FIN_INGRESS:
		return established_timeout_ns;
	case FLOW_CLOSED:
		return closed_timeout_ns;
	case FLOW_DATAGRAM:
		return datagram_timeout_ns;
	case FLOW_DATAGRAM_BOTH:
	case FLOW_REVOKED:
		return datagram_both_timeout_ns;
	default:
		return syn_timeout_ns;
	}
}

/* Only a conversation that both sides took part in may be resumed within the operator's grace: it was idle, not over.
 */
static __always_inline __u64 grace_of(__u8 state)
{
	__u32 zero = 0;
	struct limits *limit = bpf_map_lookup_elem(&limits, &zero);

	switch (state) {
	case FLOW_ESTABLISHED:
	case FLOW_FIN_EGRESS:
	case FLOW_FIN_INGRESS:
	case FLOW_DATAGRAM_BOTH:
		return limit ? limit->idle_grace_seconds * SECOND : 0;
	default:
		return 0;
	}
}

/* As `is_over` of dnsproxy/kernel/sweep.rs. */
static __always_inline int is_over(__u64 now, const struct flow *flow)
{
	__u64 idle = now > flow->last_ns ? now - flow->last_ns : 0, timeout = timeout_of(flow->state);

	return idle > timeout && idle > timeout + grace_of(flow->state);
}

#endif
