/* SPDX-License-Identifier: Apache-2.0 */
/* The program of XDP, for user space. It is made of the same headers as the others with other words in them, so its
 * names are its own: the build hides all but those that begin with machine_.
 */
#include "kernel.h"

#define EARLY
#define const
#include "../../../bpf/early.bpf.c"
#undef const

int machine_early(struct xdp_md *packet)
{
	return early(packet);
}

void machine_early_settings(__u32 events)
{
	events_per_second = events;
}
