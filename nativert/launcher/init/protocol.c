/*
 * Packets between init and who talks to it: one JSON object each, with descriptors.
 *
 * A packet is at most 64 KiB; a larger object comes in a memfd. Proto 1 is frozen: an init
 * outlives upgrades of what talks to it.
 */
#include "init.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_MESSAGE (16 << 20)

static const char large[] = "{\"large\":true}";

int fail(struct failure *failure, int number, const char *path, const char *text)
{
	*failure = (struct failure){
		.step = failure->step,
		.number = number,
		.path = path,
		.text = text ? text : strerror(number),
	};
	return -1;
}

void put_failure(struct text *text, const struct failure *failure)
{
	put_open(text, "error");
	put_string(text, "step", failure->step);
	put_integer_or_null(text, "errno", failure->number, failure->number != 0);
	put_string(text, "path", failure->path);
	put_string(text, "text", failure->text);
	put_end(text);
}

/* Read what a memfd holds; NULL if it is none, or too large. */
static char *read_memfd(int fd, size_t *length)
{
	struct stat about;
	char *data;
	ssize_t got;

	if (fstat(fd, &about) || about.st_size <= 0 || about.st_size > MAX_MESSAGE)
		return NULL;
	data = malloc((size_t)about.st_size);
	if (!data)
		return NULL;
	got = pread(fd, data, (size_t)about.st_size, 0);
	if (got <= 0) {
		free(data);
		return NULL;
	}
	*length = (size_t)got;
	return data;
}

static ssize_t receive(int sock, char *data, struct packet *packet, int *flags)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int) * MAX_FDS)];
	} control;
	struct iovec iov = {.iov_base = data, .iov_len = MAX_PACKET};
	struct msghdr msg = {
		.msg_iov = &iov,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control),
	};
	ssize_t got = recvmsg(sock, &msg, MSG_CMSG_CLOEXEC);

	if (got < 0)
		return got;
	*flags = msg.msg_flags;
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&msg); c; c = CMSG_NXTHDR(&msg, c)) {
		size_t count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);

		if (c->cmsg_level != SOL_SOCKET || c->cmsg_type != SCM_RIGHTS)
			continue;
		/* All of them fit: the room for them was ours to choose. */
		memcpy(packet->fds + packet->count, CMSG_DATA(c), count * sizeof(int));
		packet->count += count;
	}
	return got;
}

/* Receive one message. What it holds is valid until the next call and is given to packet_free. */
enum received packet_receive(int sock, struct packet *packet)
{
	static char data[MAX_PACKET];
	char *text = data;
	size_t length;
	int flags = 0;
	ssize_t got;

	*packet = (struct packet){0};
	got = receive(sock, data, packet, &flags);
	if (got < 0 && errno == ECONNRESET) {
		/* The peer closed without reading all of ours. What it said before comes next. */
		got = receive(sock, data, packet, &flags);
	}
	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return RECEIVED_NOTHING;
	if (got <= 0 || flags & (MSG_TRUNC | MSG_CTRUNC))
		goto gone;
	length = (size_t)got;
	if (packet->count && length == sizeof(large) - 1 && !memcmp(data, large, length)) {
		packet->large = text = read_memfd(packet->fds[0], &length);
		close(packet->fds[0]);
		packet->count--;
		memmove(packet->fds, packet->fds + 1, packet->count * sizeof(int));
		if (!text)
			goto gone;
	}
	packet->message = json_parse(text, length);
	if (packet->message && packet->message->kind == JSON_OBJECT)
		return RECEIVED_MESSAGE;
gone:
	/* A packet without bytes looks like the end, but may carry descriptors too. */
	packet_free(packet);
	return RECEIVED_GONE;
}

void packet_free(struct packet *packet)
{
	for (size_t i = 0; i < packet->count; i++)
		close(packet->fds[i]);
	free(packet->message);
	free(packet->large);
	*packet = (struct packet){0};
}

/* Send one message and duplicates of *fds*. Waits for nobody. */
int packet_send(int sock, const struct text *text, const int *fds, size_t count)
{
	union {
		struct cmsghdr align;
		char room[CMSG_SPACE(sizeof(int) * MAX_FDS)];
	} control = {0};
	struct iovec iov = {.iov_base = (void *)text->data, .iov_len = text->length};
	struct msghdr msg = {.msg_iov = &iov, .msg_iovlen = 1};

	if (count) {
		struct cmsghdr *c = &control.align;

		msg.msg_control = &control;
		msg.msg_controllen = CMSG_SPACE(sizeof(int) * count);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int) * count);
		memcpy(CMSG_DATA(c), fds, sizeof(int) * count);
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL | MSG_DONTWAIT) < 0 ? -1 : 0;
}
