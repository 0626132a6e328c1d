/* Looks a name up as programs do, with getaddrinfo, and connects if a port is given: look NAME any|4|6 [PORT]
 *
 * Writes "address A" for each, or "error E"; then "reached" or "not reached: E"; and "ms N" for the look-up. */
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static long now_ms(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

static const char *word(int error)
{
	switch (error) {
	case EAI_AGAIN:
		return "EAI_AGAIN";
	case EAI_NONAME:
		return "EAI_NONAME";
	case EAI_FAIL:
		return "EAI_FAIL";
#ifdef EAI_NODATA
	case EAI_NODATA:
		return "EAI_NODATA";
#endif
	default:
		return gai_strerror(error);
	}
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
	hints.ai_family = argv[2][0] == '4' ? AF_INET : argv[2][0] == '6' ? AF_INET6 : AF_UNSPEC;
	hints.ai_flags = AI_ADDRCONFIG;
	struct addrinfo *found = NULL;
	long start = now_ms();
	int error = getaddrinfo(argv[1], argc > 3 ? argv[3] : NULL, &hints, &found);
	long took = now_ms() - start;
	if (error)
		printf("error %s\n", word(error));
	int reached = 0;
	for (struct addrinfo *one = found; one; one = one->ai_next) {
		char text[INET6_ADDRSTRLEN];
		const void *at = one->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)one->ai_addr)->sin_addr
							   : (void *)&((struct sockaddr_in6 *)one->ai_addr)->sin6_addr;
		printf("address %s\n", inet_ntop(one->ai_family, at, text, sizeof(text)));
	}
	for (struct addrinfo *one = found; one && argc > 3 && !reached; one = one->ai_next) {
		/* The first packet after the look-up decides: no second attempt. */
		int end = socket(one->ai_family, SOCK_STREAM, 0);
		if (end >= 0 && connect(end, one->ai_addr, one->ai_addrlen) == 0)
			reached = 1;
		else
			printf("not reached: %s\n", strerror(errno));
		close(end);
	}
	if (reached)
		puts("reached");
	printf("ms %ld\n", took);
	return 0;
}
