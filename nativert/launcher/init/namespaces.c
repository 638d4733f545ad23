/*
 * The namespaces that an instance owns, and the helper process that creates them.
 *
 * The network, UTS and IPC namespaces belong to the instance's user namespace, so a capability
 * granted there works on them. Only the application enters the user namespace; init stays host
 * root, out of the application's reach. The PID and mount namespaces belong to the host's user
 * namespace and come with init itself.
 */
#include "launcher.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <net/if.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

int setns(int fd, int nstype);
int clone(int (*fn)(void *), void *stack, int flags, void *arg, ...);

static const struct {
	const char *name;
	int flag;
} kinds[MAX_HELD] = {
	[HELD_USER] = {"user", CLONE_NEWUSER},
	[HELD_UTS] = {"uts", CLONE_NEWUTS},
	[HELD_IPC] = {"ipc", CLONE_NEWIPC},
	[HELD_NET] = {"net", CLONE_NEWNET},
};

static int stand_still(void *unused)
{
	while (pause())
		;
	return unused != NULL;
}

/* One write: the kernel takes a map only as a whole, and knows no other way for these files. */
static int write_file(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	bool written;
	int number;

	if (fd < 0)
		return -1;
	written = write(fd, text, strlen(text)) >= 0;
	number = errno;
	close(fd);
	errno = number;
	return written ? 0 : -1;
}

static int hold(pid_t helper, int64_t id_base, int64_t id_count, int flags, int held[MAX_HELD])
{
	char path[64], map[64];

	snprintf(map, sizeof(map), "0 %lld %lld", (long long)id_base, (long long)id_count);
	snprintf(path, sizeof(path), "/proc/%d/uid_map", helper);
	if (write_file(path, map))
		return -1;
	snprintf(path, sizeof(path), "/proc/%d/gid_map", helper);
	if (write_file(path, map))
		return -1;
	for (size_t i = 0; i < MAX_HELD; i++) {
		if (!(flags & kinds[i].flag))
			continue;
		snprintf(path, sizeof(path), "/proc/%d/ns/%s", helper, kinds[i].name);
		held[i] = open(path, O_RDONLY | O_CLOEXEC);
		if (held[i] < 0)
			return -1;
	}
	return 0;
}

/*
 * Create user, UTS, IPC and (with *network*) network namespaces; descriptors, or -1, in *held*.
 *
 * Ids 0..id_count-1 inside are id_base.. on the host; see user_namespaces(7). The helper lives no
 * longer than its namespaces need to be held by descriptor; it is killed, and left to the caller
 * to be reaped: waiting for the scheduler takes milliseconds on a busy machine.
 */
int namespaces_create(int64_t id_base, int64_t id_count, bool network, int held[MAX_HELD],
		      pid_t *helper, struct failure *failure)
{
	/*
	 * May be shared by a helper that was killed and one that is new: the former returns to it no
	 * more. It shares our memory (CLONE_VM), so nothing is copied.
	 */
	static char stack[16384] __attribute__((aligned(16)));
	int flags = CLONE_NEWUSER | CLONE_NEWUTS | CLONE_NEWIPC | (network ? CLONE_NEWNET : 0);
	int failed;

	*helper = 0;
	for (size_t i = 0; i < MAX_HELD; i++)
		held[i] = -1;
	/* The kernel takes the number modulo 2**32: it could become the host's root. */
	if (id_base <= 0 || id_count <= 0 || id_count > (1LL << 32) ||
	    id_base > (1LL << 32) - id_count)
		return fail(failure, EINVAL, NULL, "no range of host ids");
	*helper = clone(stand_still, stack + sizeof(stack), flags | CLONE_VM | SIGCHLD, NULL);
	if (*helper < 0) {
		*helper = 0;
		return fail(failure, errno, NULL, NULL);
	}
	/* The maps are written from outside: within there is no right to map others' ids. */
	failed = hold(*helper, id_base, id_count, flags, held);
	if (failed) {
		fail(failure, errno, NULL, NULL);
		for (size_t i = 0; i < MAX_HELD; i++)
			close_fd(&held[i]);
	}
	kill(*helper, SIGKILL);
	return failed;
}

/* Enter all but the user namespace. */
int namespaces_join(const int held[MAX_HELD])
{
	for (size_t i = 0; i < MAX_HELD; i++)
		if (i != HELD_USER && held[i] >= 0 && setns(held[i], kinds[i].flag))
			return -1;
	return 0;
}

/* Set the loopback interface of the present network namespace up; see netdevice(7). */
int loopback_up(void)
{
	int sock = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq request = {.ifr_name = "lo"};
	int failed;

	if (sock < 0)
		return -1;
	failed = ioctl(sock, SIOCGIFFLAGS, &request);
	request.ifr_flags |= IFF_UP;
	if (!failed)
		failed = ioctl(sock, SIOCSIFFLAGS, &request);
	close(sock);
	return failed;
}

/*
 * Let every id of the instance bind low ports and send ICMP echo; see ip(7), icmp(7).
 *
 * nginx on port 80 needs this, because the application has no capabilities.
 */
int allow_unprivileged_network(int64_t id_base, int64_t id_count)
{
	char range[64];

	/* Group ids are those of the writer's user namespace: the host's. */
	snprintf(range, sizeof(range), "%lld %lld", (long long)id_base,
		 (long long)(id_base + id_count - 1));
	return write_file("/proc/sys/net/ipv4/ip_unprivileged_port_start", "0") ||
	       write_file("/proc/sys/net/ipv4/ping_group_range", range);
}
