/* SPDX-License-Identifier: Apache-2.0 */
/* What the kernel programs stand on, in user space: maps, a clock, and frames in pieces as the kernel has them. Each
 * thread has a machine of its own. The helpers do and refuse what those of Linux 6.18 do (net/core/filter.c).
 */
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <bpf/bpf_helpers.h>

#define MAPS 32
#define CHAINS 256 /* of a hash */
#define FRAME (160 * 1024)
#define PAGE 4096
#define E2BIG 7
#define ENOMEM 12
#define EFAULT 14
#define EEXIST 17
#define EINVAL 22
#define ENOENT 2
#define ENOTSUPP 524

struct row {
	struct row *next;
	__u8 octets[]; /* key, then value at the next multiple of 8 */
};

struct map {
	const char *name;
	struct shape shape;
	struct row *chains[CHAINS]; /* a trie has all in the first */
	__u8 *array;
	__u32 rows;
};

struct machine {
	struct map maps[MAPS];
	int count;
	struct row *deleted; /* until the run is over: RCU keeps them so long */
	__u64 now;
	__u8 *low;	     /* data and data_end are 32 bits wide: below 4 GiB, and a hole behind it */
	__u8 frame[FRAME];   /* all of it */
	__u32 linear, moved; /* octets at data; what was put in front */
	__u64 event[32];
	__u32 event_octets;
	__u32 events, redirects, redirected_to;
	__u32 unfinished; /* where the checksum ends that is left to a card */
	__u32 length;	  /* of the frame, to XDP */
	int early;	  /* XDP's program runs */
};

static _Thread_local struct machine *machine;

static void out_of(const char *what)
{
	fprintf(stderr, "frames: out of %s\n", what);
	abort();
}

static void *zeroed(size_t octets)
{
	void *memory = calloc(1, octets);

	if (!memory)
		out_of("memory");
	return memory;
}

static struct machine *here(void)
{
	if (machine)
		return machine;
	machine = zeroed(sizeof(*machine));
	for (unsigned long at = 0x10000000; !machine->low && at < 0x70000000; at += 0x100000) {
		void *found = mmap((void *)at, FRAME + PAGE, PROT_READ | PROT_WRITE,
				   MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);

		if (found == MAP_FAILED)
			continue;
		if ((unsigned long)found + FRAME + PAGE >= 1UL << 32) { /* an old kernel takes the address as a hint */
			munmap(found, FRAME + PAGE);
			continue;
		}
		machine->low = found;
	}
	if (!machine->low || mprotect(machine->low + FRAME, PAGE, PROT_NONE))
		out_of("memory below 4 GiB");
	return machine;
}

static __u32 padded(__u32 octets)
{
	return (octets + 7) & ~7U;
}

static int is_array(struct shape shape)
{
	return shape.type == BPF_MAP_TYPE_ARRAY || shape.type == BPF_MAP_TYPE_PERCPU_ARRAY;
}

static struct map *map_of(const char *name, struct shape shape)
{
	struct machine *m = here();
	struct map *map;

	if (m->early && !strcmp(name, "&counters"))
		name = EARLY_COUNTERS;
	if (m->early && !strcmp(name, "&buckets"))
		name = EARLY_BUCKETS;
	for (int i = 0; i < m->count; i++)
		if (!strcmp(m->maps[i].name, name))
			return &m->maps[i];
	if (m->count == MAPS)
		out_of("maps");
	map = &m->maps[m->count++];
	map->name = name;
	map->shape = shape;
	if (is_array(shape))
		map->array = zeroed((size_t)padded(shape.value_octets) * shape.rows);
	return map;
}

static struct row **chain_of(struct map *map, const __u8 *key)
{
	__u32 hash = 2166136261U;

	if (map->shape.type == BPF_MAP_TYPE_LPM_TRIE)
		return &map->chains[0];
	for (__u32 i = 0; i < map->shape.key_octets; i++)
		hash = (hash ^ key[i]) * 16777619U;
	return &map->chains[(hash ^ hash >> 16) % CHAINS];
}

static struct row **row_of(struct map *map, const void *key)
{
	struct row **at = chain_of(map, key);

	while (*at && memcmp((*at)->octets, key, map->shape.key_octets))
		at = &(*at)->next;
	return at;
}

static __u8 *value_of(struct map *map, struct row *row)
{
	return row->octets + padded(map->shape.key_octets);
}

/* Whether the prefix is one of the key: its length stands in front, in bits, in the machine's order. */
static int covers(const __u8 *prefix, const __u8 *key, __u32 wanted)
{
	__u32 length;

	memcpy(&length, prefix, 4);
	if (length > wanted || memcmp(prefix + 4, key + 4, length / 8))
		return 0;
	return !(length % 8) || !((prefix[4 + length / 8] ^ key[4 + length / 8]) >> (8 - length % 8));
}

static void *longest(struct map *map, const __u8 *key)
{
	struct row *best = NULL;
	__u32 wanted, length = 0, found;

	memcpy(&wanted, key, 4);
	for (struct row *row = map->chains[0]; row; row = row->next) {
		memcpy(&found, row->octets, 4);
		if (covers(row->octets, key, wanted) && (!best || found > length)) {
			best = row;
			length = found;
		}
	}
	return best ? value_of(map, best) : NULL;
}

void *machine_lookup(const char *name, struct shape shape, const void *key)
{
	struct map *map = map_of(name, shape);
	struct row *row;

	if (is_array(shape)) {
		__u32 index;

		memcpy(&index, key, 4);
		return index < map->shape.rows ? map->array + (size_t)padded(shape.value_octets) * index : NULL;
	}
	if (shape.type == BPF_MAP_TYPE_LPM_TRIE)
		return longest(map, key);
	row = *row_of(map, key);
	return row ? value_of(map, row) : NULL;
}

long machine_update(const char *name, struct shape shape, const void *key, const void *value, __u64 flags)
{
	struct map *map = map_of(name, shape);
	struct row **at;

	if (is_array(shape)) {
		void *to = machine_lookup(name, shape, key);

		if (!to || flags == BPF_NOEXIST)
			return to ? -EEXIST : -E2BIG;
		memcpy(to, value, shape.value_octets);
		return 0;
	}
	at = row_of(map, key);
	if (*at) {
		if (flags == BPF_NOEXIST)
			return -EEXIST;
		memcpy(value_of(map, *at), value, shape.value_octets);
		return 0;
	}
	if (flags == BPF_EXIST)
		return -ENOENT;
	if (map->rows >= map->shape.rows)
		return -E2BIG;
	*at = zeroed(sizeof(struct row) + padded(shape.key_octets) + padded(shape.value_octets));
	memcpy((*at)->octets, key, shape.key_octets);
	memcpy(value_of(map, *at), value, shape.value_octets);
	map->rows++;
	return 0;
}

long machine_delete(const char *name, struct shape shape, const void *key)
{
	struct map *map = map_of(name, shape);
	struct row **at = row_of(map, key), *gone = *at;

	if (is_array(shape))
		return -EINVAL;
	if (!gone)
		return -ENOENT;
	*at = gone->next;
	/* The kernel may give the memory to another row at once: who reads it then reads nonsense. */
	memset(value_of(map, gone), 0xdd, shape.value_octets);
	gone->next = here()->deleted;
	here()->deleted = gone;
	map->rows--;
	return 0;
}

static void forget(struct row **rows)
{
	while (*rows) {
		struct row *next = (*rows)->next;

		free(*rows);
		*rows = next;
	}
}

/* Every map is empty and as large as it was defined. */
void machine_reset(void)
{
	struct machine *m = here();

	for (int i = 0; i < m->count; i++) {
		for (int chain = 0; chain < CHAINS; chain++)
			forget(&m->maps[i].chains[chain]);
		free(m->maps[i].array);
	}
	memset(m->maps, 0, sizeof(m->maps));
	m->count = 0;
}

void machine_resize(const char *name, struct shape shape, __u32 rows)
{
	map_of(name, shape)->shape.rows = rows;
}

__u32 machine_rows(const char *name, struct shape shape)
{
	return map_of(name, shape)->rows;
}

__u64 bpf_ktime_get_coarse_ns(void)
{
	return here()->now;
}

void *machine_reserve(__u64 octets)
{
	struct machine *m = here();

	if (octets > sizeof(m->event))
		out_of("room for an event");
	memset(m->event, 0xaa, sizeof(m->event)); /* the ring is not zeroed either */
	m->event_octets = octets;
	return m->event;
}

void machine_submit(void *event)
{
	here()->events += event == here()->event;
}

/* The octets from data on end where the hole begins: one octet too far is a fault. */
static void show(struct __sk_buff *skb, __u32 linear)
{
	struct machine *m = here();
	__u8 *data = m->low + FRAME - linear;

	memcpy(data, m->frame, linear);
	m->linear = linear;
	skb->data = (unsigned long)data;
	skb->data_end = (unsigned long)(data + linear);
}

long bpf_skb_load_bytes(const struct __sk_buff *skb, __u32 offset, void *to, __u32 length)
{
	if (offset > skb->len || length > skb->len - offset) {
		memset(to, 0, length);
		return -EFAULT;
	}
	memcpy(to, here()->frame + offset, length);
	return 0;
}

/* Octets that are to be written must be linear, and the pointers to them are void after. */
static __u8 *writable(struct __sk_buff *skb, __u32 offset, __u32 length)
{
	__u32 linear = here()->linear;

	if (offset > skb->len || length > skb->len - offset)
		return NULL;
	if (offset + length > linear)
		show(skb, offset + length);
	return here()->frame + offset;
}

long bpf_skb_store_bytes(struct __sk_buff *skb, __u32 offset, const void *from, __u32 length, __u64 flags)
{
	__u8 *to = writable(skb, offset, length);

	(void)flags;
	if (!to)
		return -EFAULT;
	memcpy(to, from, length);
	show(skb, here()->linear);
	return 0;
}

long bpf_skb_pull_data(struct __sk_buff *skb, __u32 length)
{
	if (length > skb->len)
		return -ENOMEM;
	if (length > here()->linear)
		show(skb, length);
	return 0;
}

long bpf_skb_change_tail(struct __sk_buff *skb, __u32 length, __u64 flags)
{
	struct machine *m = here();

	if (flags || length > FRAME || length < 14 || length < m->unfinished)
		return -EINVAL;
	if (length > skb->len)
		memset(m->frame + skb->len, 0, length - skb->len);
	skb->len = length;
	show(skb, m->linear < length ? m->linear : length);
	return 0;
}

/* Only what the programs use: room behind the link's header, for which the packet's version has to be known. */
long bpf_skb_adjust_room(struct __sk_buff *skb, __s32 room, __u32 mode, __u64 flags)
{
	struct machine *m = here();
	const __u32 link = 14;

	if (flags || mode != BPF_ADJ_ROOM_MAC || room < 0 || room > 0xfff || skb->len + room > FRAME || skb->len < link)
		return -EINVAL;
	if (memcmp(m->frame + 12, "\x08\x00", 2) && memcmp(m->frame + 12, "\x86\xdd", 2))
		return -ENOTSUPP;
	memmove(m->frame + link + room, m->frame + link, skb->len - link);
	memset(m->frame + link, 0, room);
	skb->len += room;
	show(skb, m->linear + room);
	return 0;
}

long bpf_skb_change_type(struct __sk_buff *skb, __u32 type)
{
	skb->pkt_type = type;
	return 0;
}

static __u32 add_words(__u64 sum, __u64 more)
{
	sum += more;
	sum = (sum & 0xffffffff) + (sum >> 32);
	return (sum & 0xffffffff) + (sum >> 32);
}

static __u16 folded(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

__s64 bpf_csum_diff(const __be32 *from, __u32 from_octets, const __be32 *to, __u32 to_octets, __u32 seed)
{
	__u32 sum = seed, word;

	if ((from_octets | to_octets) & 3)
		return -EINVAL;
	for (__u32 i = 0; i < from_octets; i += 4) {
		memcpy(&word, (const __u8 *)from + i, 4);
		sum = add_words(sum, ~word);
	}
	for (__u32 i = 0; i < to_octets; i += 4) {
		memcpy(&word, (const __u8 *)to + i, 4);
		sum = add_words(sum, word);
	}
	return sum;
}

/* The sum at `offset`, with `from` out of it and `to` in it. One that is left to a card covers the pseudo header only.
 */
static long replace(struct __sk_buff *skb, __u32 offset, __u32 from, __u32 to, int transport, __u64 flags)
{
	int datagram = !!(flags & BPF_F_MARK_MANGLED_0), unfinished = transport && here()->unfinished;
	__u8 *at;
	__u16 sum;

	if (offset > 0xffff || offset & 1 || !(at = writable(skb, offset, 2)))
		return -EFAULT;
	memcpy(&sum, at, 2);
	if (datagram && !sum)
		return 0; /* UDP without one */
	if (unfinished && !(flags & BPF_F_PSEUDO_HDR))
		return 0;
	sum = unfinished ? folded(add_words(add_words(sum, ~from), to))
			 : ~folded(add_words(add_words((__u16)~sum, ~from), to));
	if (datagram && !sum)
		sum = 0xffff;
	memcpy(at, &sum, 2);
	show(skb, here()->linear);
	return 0;
}

long bpf_l3_csum_replace(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 size)
{
	return size == 2 || size == 4 ? replace(skb, offset, from, to, 0, 0) : -EINVAL;
}

long bpf_l4_csum_replace(struct __sk_buff *skb, __u32 offset, __u64 from, __u64 to, __u64 flags)
{
	__u64 size = flags & 0xf;

	if (size ? size != 2 && size != 4 : from != 0)
		return -EINVAL;
	return replace(skb, offset, from, to, 1, flags);
}

/* Only beside the workload, which this machine is not. */
long bpf_redirect(__u32 ifindex, __u64 flags)
{
	(void)ifindex;
	(void)flags;
	return 2;
}

__u64 bpf_get_socket_cookie(struct __sk_buff *skb)
{
	(void)skb;
	return 0;
}

long bpf_redirect_peer(__u32 ifindex, __u64 flags)
{
	here()->redirects++;
	here()->redirected_to = ifindex;
	return flags ? 2 : 7; /* TC_ACT_SHOT, TC_ACT_REDIRECT */
}

long bpf_xdp_load_bytes(struct xdp_md *packet, __u32 offset, void *to, __u32 length)
{
	struct machine *m = here();

	(void)packet;
	if (offset > m->length || length > m->length - offset)
		return -EINVAL;
	memcpy(to, m->frame + offset, length);
	return 0;
}

__u64 bpf_xdp_get_buff_len(struct xdp_md *packet)
{
	(void)packet;
	return here()->length;
}

struct input {
	const __u8 *octets;
	__u32 length, linear, ifindex, mark, vlan_present, gso_size, inbound, unfinished;
	__u64 now;
};

struct output {
	const __u8 *octets;
	const __u8 *event;
	__u32 length, event_octets, events, redirects, redirected_to, pkt_type;
	__s32 action;
};

int machine_program(int inbound, struct __sk_buff *skb);

/* One run; what `output` points to is good until the next. -1: the frame is too long. */
int machine_run(const struct input *input, struct output *output)
{
	struct machine *m = here();
	struct __sk_buff skb = {
		.len = input->length,
		.ifindex = input->ifindex,
		.ingress_ifindex = input->ifindex,
		.mark = input->mark,
		.vlan_present = input->vlan_present,
		.gso_size = input->gso_size,
		.pkt_type = 3, /* PACKET_OTHERHOST */
	};

	if (input->length > FRAME - 4096)
		return -1;
	memcpy(m->frame, input->octets, input->length);
	m->now = input->now;
	m->events = m->redirects = m->redirected_to = 0;
	m->unfinished = input->unfinished;
	show(&skb, input->linear < input->length ? input->linear : input->length);
	output->action = machine_program(input->inbound, &skb);
	forget(&m->deleted);
	output->octets = m->frame;
	output->length = skb.len;
	output->event = (const __u8 *)m->event;
	output->event_octets = m->event_octets;
	output->events = m->events;
	output->redirects = m->redirects;
	output->redirected_to = m->redirected_to;
	output->pkt_type = skb.pkt_type;
	return 0;
}

int machine_early(struct xdp_md *packet);

/* Octets that drivers show at least: they have a page in front of them. */
#define DRIVERS 1024

/* The program of XDP, which changes no frame. */
int machine_run_early(const struct input *input, struct output *output)
{
	struct machine *m = here();
	__u32 linear = input->linear > DRIVERS ? input->linear : DRIVERS;
	struct __sk_buff shown = {.len = input->length};
	struct xdp_md packet = {.ingress_ifindex = input->ifindex};

	if (input->length > FRAME - 4096)
		return -1;
	memcpy(m->frame, input->octets, input->length);
	m->now = input->now;
	m->length = input->length;
	m->events = 0;
	show(&shown, linear < input->length ? linear : input->length);
	packet.data = shown.data;
	packet.data_end = shown.data_end;
	m->early = 1;
	output->action = machine_early(&packet);
	m->early = 0;
	forget(&m->deleted);
	output->event = (const __u8 *)m->event;
	output->event_octets = m->event_octets;
	output->events = m->events;
	return 0;
}
