def test_attention(check_then_time, case, contender):
    check_then_time(case, contender)
