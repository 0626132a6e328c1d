/* SPDX-License-Identifier: Apache-2.0 */
/* Stands where libbpf's header of this name stands, when the kernel programs are compiled for user space: the same
 * words, answered by machine.c. A map is known by its name, and its shape is read off its definition at each look-up,
 * so that nothing here lists the maps.
 */
#ifndef FRAMES_BPF_HELPERS_H
#define FRAMES_BPF_HELPERS_H

#include <linux/types.h>
#include <linux/bpf.h>

#undef __always_inline /* linux/stddef.h has one without the attribute */
#define __always_inline inline __attribute__((always_inline))
#define SEC(name)
#define __uint(name, val) int(*name)[val]
#define __type(name, val) typeof(val) *name
enum { LIBBPF_PIN_BY_NAME = 1 };

struct shape {
	__u32 type, key_octets, value_octets, rows;
};

#define ENTRIES(pointer) (sizeof(*(pointer)) / sizeof(int))
#define SHAPE(of) \
	((struct shape){ENTRIES((of)->type), sizeof(*(of)->key), sizeof(*(of)->value), ENTRIES((of)->max_entries)})

/* Programs of TC and of XDP share all maps but those of what they have done: counters and buckets. */
#define EARLY_COUNTERS "early &counters"
#define EARLY_BUCKETS "early &buckets"

void *machine_lookup(const char *map, struct shape shape, const void *key);
long machine_update(const char *map, struct shape shape, const void *key, const void *value, __u64 flags);
long machine_delete(const char *map, struct shape shape, const void *key);
#define bpf_map_lookup_elem(of, key) machine_lookup(#of, SHAPE(of), key)
#define bpf_map_update_elem(of, key, value, flags) machine_update(#of, SHAPE(of), key, value, flags)
#define bpf_map_delete_elem(of, key) machine_delete(#of, SHAPE(of), key)

void *machine_reserve(__u64 octets);
void machine_submit(void *event);
#define bpf_ringbuf_reserve(ring, octets, flags) machine_reserve(octets)
#define bpf_ringbuf_submit(event, flags) machine_submit(event)

__u64 bpf_ktime_get_coarse_ns(void);
long bpf_skb_load_bytes(const struct __sk_buff *skb, __u32 offset, void *to, __u32 length);
long bpf_skb_store_bytes(struct __sk_buff *skb, __u32 offset, const void *from, __u32 length, __u64 flags);
long bpf_skb_pull_data(struct __sk_buff *skb, __u32 length);
long bpf_skb_change_tail(struct __sk_buff *skb, __u32 length, __u64 flags);
long bpf_skb_adjust_room(struct __sk_buff *skb, __s32 room, __u32 mode, __u64 flags);
long bpf_skb_change_type(struct __sk_buff *skb, __u32 type);
long bpf_l3_csum_replace(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 size);
long bpf_l4_csum_replace(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 flags);
__s64 bpf_csum_diff(const __be32 *from, __u32 from_octets, const __be32 *to, __u32 to_octets, __u32 seed);
long bpf_redirect_peer(__u32 ifindex, __u64 flags);
long bpf_redirect(__u32 ifindex, __u64 flags);
__u64 bpf_get_socket_cookie(struct __sk_buff *skb);
long bpf_xdp_load_bytes(struct xdp_md *packet, __u32 offset, void *to, __u32 length);
__u64 bpf_xdp_get_buff_len(struct xdp_md *packet);

#endif
