// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/* The proxy's heartbeat, and what is done while there is none: flows that are over go, so that the endpoints of a dead
 * proxy don't run into their budgets.
 *
 * Every beat pushes the timer away, so that it never goes off while the proxy lives. The timer holds this program, the
 * pin of `heartbeat` holds the timer: both outlive the process (I12), until the next one's program takes over with its
 * first beat.
 */
#include "include/lifetime.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

#define STALE (5 * SECOND)
#define AGAIN (10 * SECOND)
#define VISITED_MAX 262144 /* a pass runs in an interrupt: some 30 ms. What lies beyond waits for the proxy */
#define MONOTONIC 1	   /* CLOCK_MONOTONIC */

struct pass {
	__u64 now;
	__u32 visited;
	__u32 removed;
};

static long sweep_flow(void *map, struct flow_key *key, struct flow *flow, struct pass *pass)
{
	__u32 id = key->endpoint_and_protocol >> 8, *slot;
	int pooled = flow->pooled;

	if (pass->visited++ >= VISITED_MAX)
		return 1;
	if (!is_over(pass->now, flow))
		return 0;
	slot = bpf_map_lookup_elem(&slots, &id);
	if (!slot || bpf_map_delete_elem(map, key))
		return 0; /* of nobody we know, which is for the proxy to mend; or another was first */
	discharge(*slot, pooled);
	pass->removed++;
	return 0;
}

#define UNUSED __attribute__((unused))

static int sweep(void *map UNUSED, __u32 *key UNUSED, struct heartbeat *row)
{
	struct pass pass = {.now = bpf_ktime_get_coarse_ns()};

	if (pass.now > row->last_ns &&
	    pass.now - row->last_ns > STALE / 2) { /* no beat came while this was under way */
		bpf_for_each_map_elem(&flows, sweep_flow, &pass, 0);
		row->swept += pass.removed;
	}
	bpf_timer_start(&row->timer, AGAIN, 0);
	return 0;
}

/* Run by the proxy every second, with any frame. How many flows were swept since the last beat, or what failed. A TC
 * program because those of type syscall may not read the coarse clock, with which the stamps of flows are made.
 */
SEC("tc")
int beat(struct __sk_buff *skb UNUSED)
{
	__u32 zero = 0;
	struct heartbeat *row = bpf_map_lookup_elem(&heartbeat, &zero);
	long failed;
	int swept;

	if (!row)
		return -2;
	row->last_ns = bpf_ktime_get_coarse_ns();
	bpf_timer_init(&row->timer, &heartbeat, MONOTONIC); /* fails if it was, which is well */
	failed = bpf_timer_set_callback(&row->timer, sweep);
	if (!failed)
		failed = bpf_timer_start(&row->timer, STALE, 0);
	if (failed)
		return failed;
	swept = row->swept;
	row->swept = 0;
	return swept;
}
