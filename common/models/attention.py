"""Recurrent sequence modelling and additive-attention decoding (Bahdanau et al. 2015; Baek et al. 2019, "TRBA").

The decoders read `features` [B, W, D] column by column and write one character a step. With `text` [B, T] (ids whose
column 0 is the start id) they are teacher forced and nothing but the recurrence itself is left inside the loop; without
it they feed back their own arg-max for `steps` steps from `start`. State-dict names are the published ones.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn


class BidirectionalLSTM(nn.Module):
    """[B, W, in] -> [B, W, out]: an LSTM in both directions and a linear layer on the joined states."""

    def __init__(self, in_size: int, hidden_size: int, out_size: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(in_size, hidden_size, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden_size, out_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # The zero start is spelled out with the batch's own size: an exported graph would keep the example's.
        zero = x.new_zeros(2, x.shape[0], self.rnn.hidden_size)
        return self.linear(self.rnn(x, (zero, zero))[0])


class Decoded(NamedTuple):
    """What a decoder returns.

    `logits` [B, T, C]; `attention` [B, T, W] (None where the decoder has none), each row sums to 1; `outputs` [B, T,
    H]: the hidden states, or what a subclass puts in their place.
    """

    logits: torch.Tensor
    attention: torch.Tensor | None
    outputs: torch.Tensor


class State(NamedTuple):
    """Hidden and cell state [B, H] of an LSTM cell."""

    hidden: torch.Tensor
    cell: torch.Tensor


def zero_state(like: torch.Tensor, size: int) -> State:
    """The all-zero start for a batch as large as `like`'s, on its device and in its type."""
    return State(like.new_zeros(like.shape[0], size), like.new_zeros(like.shape[0], size))


def lstm_update(gates: torch.Tensor, state: State) -> State:
    """One LSTM cell update from the summed pre-activations [B, 4H] in torch's order: input, forget, cell, output."""
    input_gate, forget_gate, candidate, output_gate = gates.chunk(4, dim=1)
    cell = torch.sigmoid(forget_gate) * state.cell + torch.sigmoid(input_gate) * torch.tanh(candidate)
    return State(torch.sigmoid(output_gate) * torch.tanh(cell), cell)


class Memory(NamedTuple):
    """What an attention decoder computes once per batch: `keys` i2h(H) [B, W, H], `values` that the weights mix [B, W,
    V] and `recurrent`, the matrix (and bias) that turns the hidden state into the query and its part of the gates."""

    keys: torch.Tensor
    values: torch.Tensor
    recurrent: torch.Tensor
    bias: torch.Tensor


class AttentionCell(nn.Module):
    """score(tanh(i2h(H) + h2h(h))), softmax over columns, context into an LSTM cell with the last character's
    embedding.

    The cell is linear in the context before its gates, so H goes through the context half of `rnn.weight_ih` once and
    the attention mixes the result: no matrix product with the context is left in a step.
    """

    def __init__(self, in_size: int, hidden_size: int, embedding_size: int) -> None:
        super().__init__()
        self.i2h = nn.Linear(in_size, hidden_size, bias=False)
        self.h2h = nn.Linear(hidden_size, hidden_size)
        self.score = nn.Linear(hidden_size, 1, bias=False)
        self.rnn = nn.LSTMCell(in_size + embedding_size, hidden_size)

    @property
    def context_weight(self) -> torch.Tensor:
        """The columns of `rnn.weight_ih` that meet the context [4H, in]."""
        return self.rnn.weight_ih[:, : self.i2h.in_features]

    def memory(self, features: torch.Tensor) -> Memory:
        """Everything that depends on the features [B, W, in] alone."""
        values = F.linear(features, self.context_weight)  # [B, W, 4H]
        return Memory(self.i2h(features), values, *self._recurrent())

    def _recurrent(self) -> tuple[torch.Tensor, torch.Tensor]:
        weight = torch.cat([self.h2h.weight, self.rnn.weight_hh])
        return weight, torch.cat([self.h2h.bias, self.rnn.bias_hh])

    def token_gates(self, embedded: torch.Tensor) -> torch.Tensor:
        """The embedding's part of the gates, [.., E] -> [.., 4H], for all steps at once."""
        return F.linear(embedded, self.rnn.weight_ih[:, self.i2h.in_features :], self.rnn.bias_ih)

    def attend(self, memory: Memory, state: State) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(mixed values [B, V], attention [B, W], the hidden state's part of the gates [B, 4H])."""
        # one product for h2h(h) and the cell's W_hh h, since both take the hidden state
        query, gates = F.linear(state.hidden, memory.recurrent, memory.bias).split_with_sizes(
            [self.h2h.out_features, memory.recurrent.shape[0] - self.h2h.out_features], dim=1
        )
        energy = self.score(torch.tanh(memory.keys + query.unsqueeze(1))).squeeze(2)  # [B, W]
        attention = energy.softmax(dim=1)
        return torch.bmm(attention.unsqueeze(1), memory.values).squeeze(1), attention, gates

    def step(
        self, memory: Memory, state: State, token: torch.Tensor, aside: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, State]:
        """(output [B, H], attention [B, W], next state); `aside` is a subclass's input of this step, unused here."""
        context, attention, gates = self.attend(memory, state)
        state = lstm_update(context + gates + token, state)
        return state.hidden, attention, state


class AttentionDecoder(nn.Module):
    """Features [B, W, in] -> characters; a table of `num_class + 1` embeddings unless `embedding_rows` says
    otherwise.
    """

    cell_type = AttentionCell

    def __init__(
        self,
        in_size: int,
        hidden_size: int,
        num_class: int,
        *,
        embedding_size: int = 256,
        embedding_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.attention_cell = self.cell_type(in_size, hidden_size, embedding_size)
        self.hidden_size = hidden_size
        self.generator = nn.Linear(hidden_size, num_class)
        self.char_embeddings = nn.Embedding(embedding_rows or num_class + 1, embedding_size)

    def token_gates(self, text: torch.Tensor | None) -> torch.Tensor:
        """Gate parts of the given ids [B, T, 4H], or of every id [rows, 4H] to look up in."""
        embedded = self.char_embeddings.weight if text is None else self.char_embeddings(text)
        return self.attention_cell.token_gates(embedded)

    def forward(
        self,
        features: torch.Tensor,
        text: torch.Tensor | None = None,
        *,
        start: int = 0,
        steps: int = 26,
        aside: torch.Tensor | None = None,
    ) -> Decoded:
        """Teacher forced along `text` [B, T], else `steps` greedy steps from the id `start`; `aside` [B, T, ..] goes to
        the cell.
        """
        cell, memory = self.attention_cell, self.attention_cell.memory(features)
        gates = self.token_gates(text)  # of the given ids; greedy: of all ids, a row of which is taken each step
        state = zero_state(features, self.hidden_size)
        asides = [None] * steps if aside is None else aside.unbind(1)
        tokens = gates.unbind(1) if text is not None else None
        token = gates[start].expand(features.shape[0], -1) if text is None else None
        outputs, attentions, hidden, logits = [], [], [], []
        for t in range(steps if text is None else text.shape[1]):
            output, attention, state = cell.step(memory, state, token if tokens is None else tokens[t], asides[t])
            outputs.append(output)
            attentions.append(attention)
            hidden.append(state.hidden)
            if text is None:
                logits.append(self.generator(state.hidden))
                token = gates[logits[-1].argmax(dim=1)]
        # teacher forced, the classifier is not needed inside the loop and sees all steps at once
        scores = self.generator(torch.stack(hidden, dim=1)) if text is not None else torch.stack(logits, dim=1)
        return Decoded(scores, torch.stack(attentions, dim=1), torch.stack(outputs, dim=1))


class SequenceDecoder(nn.Module):
    """A decoder without attention: step t reads [sequence_t; embedding of the last character] in an LSTM cell.

    Teacher forced, this is a plain LSTM over the whole sequence and runs as one.
    """

    def __init__(
        self,
        in_size: int,
        hidden_size: int,
        num_class: int,
        *,
        embedding_size: int = 256,
        embedding_rows: int | None = None,
    ) -> None:
        super().__init__()
        self.in_size, self.hidden_size = in_size, hidden_size
        self.generator = nn.Linear(hidden_size, num_class)
        self.char_embeddings = nn.Embedding(embedding_rows or num_class + 1, embedding_size)
        self.rnn = nn.LSTMCell(in_size + embedding_size, hidden_size)

    def token_gates(self) -> torch.Tensor:
        """Gate parts of every id [rows, 4H], the cell's biases included."""
        return F.linear(
            self.char_embeddings.weight, self.rnn.weight_ih[:, self.in_size :], self.rnn.bias_ih + self.rnn.bias_hh
        )

    def step(self, item: torch.Tensor, state: State, token: torch.Tensor) -> tuple[torch.Tensor, State]:
        """(logits [B, C], next state) from the sequence's item [B, in] and the last character's gate part [B, 4H]."""
        gates = (
            F.linear(item, self.rnn.weight_ih[:, : self.in_size]) + F.linear(state.hidden, self.rnn.weight_hh) + token
        )
        state = lstm_update(gates, state)
        return self.generator(state.hidden), state

    def forward(self, sequence: torch.Tensor, text: torch.Tensor | None = None, *, start: int = 0) -> Decoded:
        """sequence [B, T, in]; teacher forced along `text` [B, T], else greedy from `start`, a step for each item."""
        if text is not None:
            return self._teacher_forced(sequence, text)
        table = self.token_gates()
        token, state = table[start].expand(sequence.shape[0], -1), zero_state(sequence, self.hidden_size)
        logits, hidden = [], []
        for item in sequence.unbind(1):
            scores, state = self.step(item, state, token)
            token = table[scores.argmax(dim=1)]
            logits.append(scores)
            hidden.append(state.hidden)
        return Decoded(torch.stack(logits, dim=1), None, torch.stack(hidden, dim=1))

    def _teacher_forced(self, sequence: torch.Tensor, text: torch.Tensor) -> Decoded:
        # torch's own LSTM loop on the weights of the LSTMCell, which is what greedy decoding steps with
        inputs = torch.cat([sequence, self.char_embeddings(text).to(sequence.dtype)], dim=2)
        state = tuple(part.unsqueeze(0) for part in zero_state(sequence, self.hidden_size))
        weights = (self.rnn.weight_ih, self.rnn.weight_hh, self.rnn.bias_ih, self.rnn.bias_hh)
        hidden = torch.lstm(inputs, state, weights, True, 1, 0.0, self.training, False, True)[0]
        return Decoded(self.generator(hidden), None, hidden)
