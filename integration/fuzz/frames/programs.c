/* SPDX-License-Identifier: Apache-2.0 */
/* The programs of TC as they stand in bpf/, for user space. Their headers come first, so that only the names that both
 * files define are told apart.
 */
#include "kernel.h"

/* Settings are constants that user space sets before the programs are loaded: here it writes to them. */
#define const
#include "../../../bpf/include/reject.h"
#include "../../../bpf/include/steer.h"

#define verdict from_pod_verdict
#define LICENSE from_pod_license
#include "../../../bpf/from_pod.bpf.c"
#undef verdict
#undef LICENSE
#undef NEXT
#undef DROP
#define verdict to_pod_verdict
#define LICENSE to_pod_license
#include "../../../bpf/to_pod.bpf.c"
#undef const

int machine_program(int inbound, struct __sk_buff *skb)
{
	return inbound ? to_pod(skb) : from_pod(skb);
}

/* The maps that the judge fills and reads; the programs may have more. */
#define MAP(name)                              \
	{                                      \
#name, "&" #name, SHAPE(&name) \
	}
static const struct {
	const char *name;
	const char *map;
	struct shape shape;
} named_maps[] = {
	MAP(endpoints), MAP(limits),	MAP(bridges),
	MAP(grants),	MAP(peers),	MAP(peer_bits),
	MAP(services),	MAP(cidr4),	MAP(cidr6),
	MAP(ports),	MAP(flows),	MAP(port_blocks),
	MAP(dns_to),	MAP(dns_from),	MAP(counters),
	MAP(budgets),	MAP(fragments), {"early_counters", EARLY_COUNTERS, SHAPE(&counters)},
};

const char *machine_map(const char *name, struct shape *shape)
{
	for (size_t i = 0; i < sizeof(named_maps) / sizeof(*named_maps); i++) {
		if (strcmp(named_maps[i].name, name))
			continue;
		*shape = named_maps[i].shape;
		return named_maps[i].map;
	}
	return NULL;
}

void machine_early_settings(__u32 events);

void machine_settings(__u32 mark, __u32 events, __u32 rejects)
{
	probe_mark = mark;
	events_per_second = events;
	rejects_per_second = rejects;
	machine_early_settings(events);
}
